//! Credentials in the address of a socket, where a browser has no other place for them. They are taken out of it before
//! anything else looks at the request.

use http::header::{AUTHORIZATION, HeaderValue};
use http::request::Parts;
use secrecy::SecretString;

use crate::auth::{AuthError, query, rewrite};

/// Takes them out: a token becomes the header that it would have been, a ticket is answered.
pub(crate) fn take(parts: &mut Parts) -> Result<Option<SecretString>, AuthError> {
    let all = query::parse(parts.uri.query())?;
    let (mut given, kept): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(name, _)| matches!(name.as_str(), "token" | "ticket"));
    let Some((name, credential)) = given.pop() else { return Ok(None) };
    if !given.is_empty() || parts.headers.contains_key(AUTHORIZATION) {
        return Err(AuthError::invalid(
            "InvalidArgument",
            "only one auth mechanism is allowed; send one of ticket, token and the Authorization header",
        ));
    }
    let address = rewrite::path_and_query(parts.uri.path(), &query::render(kept.iter()))?;
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(address);
    parts.uri = http::Uri::from_parts(uri)
        .map_err(|_| AuthError::invalid_uri("the address has characters that must be percent-encoded"))?;
    if name == "ticket" {
        return Ok(Some(credential.into()));
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {credential}"))
        .map_err(|_| AuthError::bad_token("the token is not one of ours; log in again"))?;
    header.set_sensitive(true);
    parts.headers.insert(AUTHORIZATION, header);
    Ok(None)
}

#[cfg(test)]
mod tests {
    use http::Request;
    use secrecy::ExposeSecret as _;

    use super::*;

    fn parts(uri: &str, authorization: Option<&str>) -> Parts {
        let mut request = Request::builder().uri(uri);
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        request.body(()).expect("is a request").into_parts().0
    }

    #[test]
    fn they_are_not_in_the_address_afterwards() {
        for (uri, left, ticket, header) in [
            ("/ws?topics=file", "/ws?topics=file", None, None),
            ("/ws", "/ws", None, None),
            ("/ws?token=a.b-_c", "/ws", None, Some("Bearer a.b-_c")),
            ("/ws?topics=file,node&token=a", "/ws?topics=file%2Cnode", None, Some("Bearer a")),
            (
                "http://gateway.example/ws?token=a&x=%20",
                "http://gateway.example/ws?x=%20",
                None,
                Some("Bearer a"),
            ),
            ("/ws?ticket=0f&topics=node", "/ws?topics=node", Some("0f"), None),
            ("/ws?%74icket=0f", "/ws", Some("0f"), None),
        ] {
            let mut parts = parts(uri, None);
            let found = take(&mut parts).expect("one at most");
            assert_eq!(found.as_ref().map(|ticket| ticket.expose_secret()), ticket, "{uri}");
            assert_eq!(parts.uri.to_string(), left);
            let set = parts.headers.get(AUTHORIZATION);
            assert_eq!(set.map(|value| value.to_str().expect("text")), header, "{uri}");
            assert!(set.is_none_or(HeaderValue::is_sensitive));
        }
    }

    #[test]
    fn adv_33_one_at_a_time() {
        for (uri, authorization) in [
            ("/ws?token=a&token=b", None),
            ("/ws?token=a&ticket=b", None),
            ("/ws?ticket=a&ticket=a", None),
            ("/ws?token=a", Some("Bearer b")),
            ("/ws?ticket=a", Some("AWS4-HMAC-SHA256 x")),
        ] {
            let refused = take(&mut parts(uri, authorization)).expect_err("ambiguous");
            assert_eq!(refused.status(), http::StatusCode::BAD_REQUEST, "{uri}");
        }
        // Nothing can be smuggled into another header.
        let refused = take(&mut parts("/ws?token=a%0d%0ahost:%20x", None)).expect_err("no token");
        assert_eq!(refused.status(), http::StatusCode::UNAUTHORIZED);
    }
}
