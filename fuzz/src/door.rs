//! The door: an honest request is let in as what it was; one that was changed after it was signed is the same request or is
//! refused; and what nobody signed is refused.

use std::sync::LazyLock;

use bytes::Bytes;
use cyxcloud_core::name::BucketName;
use cyxcloud_gateway::auth::{Mount, Principal, virtual_host_bucket};
use cyxcloud_gateway::body::S3Body;
use http::Request;
use http_body_util::{BodyExt as _, Full};

use super::auth_support::{AMAZON_DATE, Door, ROOT_KEY, ROOT_SECRET, Sent, USER_KEY, USER_SECRET, signer};
use super::input::{Draft, Input, edited};
use super::runtime::block_on;

static DOOR: LazyLock<Door> = LazyLock::new(|| block_on(Door::open()));

/// A request's head as text, and its body.
#[derive(Clone, Debug)]
struct Head {
    method: String,
    address: String,
    headers: Vec<(String, String)>,
}

impl Head {
    /// Reads `METHOD address`, then `name:value` lines.
    fn read(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let (method, address) = lines.next()?.split_once(' ')?;
        let headers = lines.map(|line| line.split_once(':').map(|(n, v)| (n.to_owned(), v.to_owned())));
        let headers = headers.collect::<Option<_>>()?;
        Some(Self { method: method.to_owned(), address: address.to_owned(), headers })
    }

    fn write(&self) -> String {
        let headers: String = self.headers.iter().map(|(name, value)| format!("\n{name}:{value}")).collect();
        format!("{} {}{headers}", self.method, self.address)
    }

    fn request(&self, body: &[u8]) -> Option<Sent> {
        let mut request = Request::builder().method(self.method.as_str()).uri(self.address.as_str());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(Bytes::copy_from_slice(body))).ok()
    }
}

/// What of a request decides what happens, as it was handed on.
#[derive(Debug, PartialEq, Eq)]
struct Meaning {
    principal: Principal,
    method: String,
    /// Decoded: a path may be encoded in more than one way.
    path: Vec<u8>,
    query: Vec<(Vec<u8>, Vec<u8>)>,
    signed: Vec<(String, Vec<u8>)>,
}

fn meaning(request: &Request<S3Body>) -> Meaning {
    let mut query = cyxcloud_core::sigv4::query_pairs(request.uri().query().unwrap_or_default());
    query.sort();
    let amz = |name: &str| name.starts_with("x-amz-");
    // Runs of blanks count as one where a header is signed.
    let value = |value: &[u8]| {
        value.split(u8::is_ascii_whitespace).filter(|v| !v.is_empty()).collect::<Vec<_>>().join(&b' ')
    };
    let mut signed: Vec<(String, Vec<u8>)> = request
        .headers()
        .iter()
        .filter(|(name, _)| amz(name.as_str()))
        .map(|(name, header)| (name.to_string(), value(header.as_bytes())))
        .collect();
    signed.sort();
    Meaning {
        principal: request.extensions().get::<Principal>().expect("whoever is let in is known").clone(),
        method: request.method().to_string(),
        path: decode(request.uri().path()),
        query,
        signed,
    }
}

fn knock(request: Sent, mount: Mount) -> Option<(Meaning, Option<Bytes>)> {
    // Opened outside: it runs on the same runtime.
    let door = &*DOOR;
    block_on(async {
        let request = door.knock(request, mount).await.ok()?;
        let meaning = meaning(&request);
        let body = request.into_body().collect().await.ok().map(http_body_util::Collected::to_bytes);
        Some((meaning, body))
    })
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let mount = [Mount::Root, Mount::Prefix("/s3"), Mount::Plain][usize::from(choice >> 4) % 3];
    let (text, body) = (input.text(2_000), input.some(300));
    let Some(head) = Head::read(&text) else { return };
    if choice & 1 == 0 {
        let Some(request) = head.request(body) else { return };
        assert_eq!(knock(request, mount), None, "nobody signed this: {text}");
        return;
    }
    let Some((signed, presigned)) = sign(&head, body, choice) else { return };
    let Some(request) = signed.request(body) else { return };
    let honest = knock(request, mount);
    match &honest {
        Some((meaning, read)) => {
            // It may have another length than its head says.
            assert!(read.as_ref().is_none_or(|read| read == body), "another body than was sent");
            assert_eq!(meaning.method, head.method);
            served(&signed, meaning, mount);
        }
        None => assert!(!is_simple(&head, mount), "an honest request was refused: {head:?}"),
    }
    // Changed on its way. Then it may be another body, if nobody signed that.
    let Ok(changed) = String::from_utf8(edited(signed.write().as_bytes(), &mut input)) else { return };
    let Some(changed) = Head::read(&changed) else { return };
    let Some(request) = changed.request(body) else { return };
    if let Some((meaning, _)) = knock(request, mount) {
        let (right, _) = honest.unwrap_or_else(|| panic!("right after a change only: {changed:?}"));
        assert_eq!(meaning, right, "another request was believed: {changed:?}, presigned: {presigned}");
    }
}

fn decode(text: &str) -> Vec<u8> {
    percent_encoding::percent_decode_str(text).collect()
}

/// Whether there is nothing about a request that could be refused.
fn is_simple(head: &Head, mount: Mount) -> bool {
    let path = head.address.as_str();
    head.method == "GET"
        && matches!(head.headers.as_slice(), [(name, value)] if name == "host" && value == "h")
        && path.starts_with(if mount == Mount::Root { "/" } else { "/s3/" })
        && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte))
}

/// What is served is what was addressed.
fn served(sent: &Head, meaning: &Meaning, mount: Mount) {
    let (path, _) = sent.address.split_once('?').unwrap_or((sent.address.as_str(), ""));
    if mount == Mount::Plain {
        return assert_eq!(meaning.path, decode(path));
    }
    let path = decode(path);
    let below = if mount == Mount::Root {
        path.as_slice()
    } else {
        path.strip_prefix(b"/s3").expect("below the mount")
    };
    let host = sent.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let domains = ["s3.amazonaws.com".to_owned(), "localhost".to_owned()];
    let bucket = host.and_then(|(_, host)| virtual_host_bucket(host.trim(), &domains));
    let prefix = bucket.as_ref().map(BucketName::as_str).map_or_else(String::new, |name| format!("/{name}"));
    let below = if below.is_empty() { b"/".as_slice() } else { below };
    assert_eq!(meaning.path, [prefix.as_bytes(), below].concat());
}

/// Signs in the header or in the query, by one of two keys.
fn sign(head: &Head, body: &[u8], choice: u8) -> Option<(Head, bool)> {
    let (path, query) = head.address.split_once('?').unwrap_or((head.address.as_str(), ""));
    let lower = |(name, value): &(String, String)| (name.to_ascii_lowercase(), value.trim().to_owned());
    let headers: Vec<(String, String)> = head.headers.iter().map(lower).collect();
    let query = cyxcloud_core::sigv4::query_pairs(query).into_iter();
    let query =
        query.map(|(name, value)| Some((String::from_utf8(name).ok()?, String::from_utf8(value).ok()?)));
    let query: Vec<(String, String)> = query.collect::<Option<_>>()?;
    let signer = if choice & 2 == 0 { signer(USER_KEY, USER_SECRET) } else { signer(ROOT_KEY, ROOT_SECRET) };
    let request = cyxcloud_core::sigv4::RequestToSign {
        method: &head.method,
        raw_path: path,
        query: &query,
        headers: &headers,
    };
    let mut signed = head.clone();
    let presigned = choice & 4 != 0;
    if presigned {
        signed.address = format!("{path}?{}", signer.presign(&request, AMAZON_DATE, 900));
    } else {
        let hash = cyxcloud_core::sigv4::sha256_hex(body);
        let hash = if choice & 8 == 0 { cyxcloud_core::sigv4::UNSIGNED_PAYLOAD } else { hash.as_str() };
        signed.headers.extend(signer.sign(&request, AMAZON_DATE, hash));
    }
    Some((signed, presigned))
}

pub fn seeds() -> Vec<Vec<u8>> {
    let one = |choice: u8, head: &str, body: &str, at: u32| {
        Draft::default().u8(choice).some(head).some(body).u32(0).u32(at).u8(1).rest("x")
    };
    let put = "PUT /s3/photos/a%20b/%C3%BC?x-id=PutObject\nhost:localhost:8080\nx-amz-meta-a:b  c\ncontent-length:5";
    vec![
        one(0x11, put, "hello", 0),
        one(0x19, put, "hello", 30),
        one(0x13, "GET /s3/photos?list-type=2&prefix=a%2Fb\nhost:localhost", "", 20),
        one(0x05, "GET /a+b/c?response-content-type=text%2Fplain\nhost:photos.localhost", "", 60),
        one(0x07, "PUT /photos/key\nhost:h\ncontent-length:2\nx-amz-meta-k:v", "ab", 9),
        one(0x13, "GET /s3/photos/a\nhost:h", "", 9),
        one(0x21, "POST /api/v1/keys\nhost:h\ncontent-length:2", "{}", 9),
        one(
            0x10,
            "GET /s3/?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKUSER/20130524/us-east-1/s3/aws4_request\
             &X-Amz-Date=20130524T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature=\
             0000000000000000000000000000000000000000000000000000000000000000\nhost:h",
            "",
            0,
        ),
        one(0, "GET /\nhost:h\nAuthorization:Bearer eyJhbGciOiJub25lIn0.e30.", "", 0),
        one(
            0,
            "GET /\nhost:h\nx-amz-date:20130524T000000Z\nx-amz-content-sha256:UNSIGNED-PAYLOAD\nAuthorization:AWS4-HMAC-SHA256 \
             Credential=AKUSER/20130524/us-east-1/s3/aws4_request,SignedHeaders=host;x-amz-content-sha256;x-amz-date,\
             Signature=0000000000000000000000000000000000000000000000000000000000000000",
            "",
            0,
        ),
    ]
}
