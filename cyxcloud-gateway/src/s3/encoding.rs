//! `encoding-type=url`: keys in listings percent-encoded, so that any key survives XML.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::EncodingType;
use s3s::{S3Result, s3_error};

/// What is left as it is, beside letters and digits. A space becomes `%20`, which every client reads, and not `+`.
const KEPT: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'*').remove(b'/');

/// How a listing writes keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyEncoding {
    Plain,
    Url,
}

impl KeyEncoding {
    pub(super) fn from_request(asked: Option<&EncodingType>) -> S3Result<Self> {
        match asked.map(EncodingType::as_str) {
            None | Some("") => Ok(Self::Plain),
            Some("url") => Ok(Self::Url),
            Some(_) => Err(s3_error!(InvalidArgument, "Invalid Encoding Method specified in Request")),
        }
    }

    pub(super) fn write(self, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Url => utf8_percent_encode(text, KEPT).to_string(),
        }
    }

    pub(super) fn to_response(self) -> Option<EncodingType> {
        (self == Self::Url).then(|| EncodingType::from_static(EncodingType::URL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_key_survives_xml() {
        let url = |text| KeyEncoding::Url.write(text);
        assert_eq!(url("a/b-c_d.e*f~"), "a/b-c_d.e*f~");
        assert_eq!(url("a b+c%d"), "a%20b%2Bc%25d");
        assert_eq!(url("ü&<\u{1}\0"), "%C3%BC%26%3C%01%00");
        assert_eq!(KeyEncoding::Plain.write("a b"), "a b");
        for text in ["a b+c", "ü\u{1}", "//%2F"] {
            let encoded = url(text);
            let read = percent_encoding::percent_decode_str(&encoded).decode_utf8().expect("is text");
            assert_eq!(read, text);
        }
    }
}
