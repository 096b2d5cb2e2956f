//! The few XML documents of S3 that we read and write.

use serde::Deserialize;

use super::Error;

/// An object or folder of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) key: String,
    pub(crate) size: u64,
    pub(crate) modified: String,
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) objects: Vec<Listed>,
    /// Folders, with the slash at their end.
    pub(crate) folders: Vec<String>,
    /// For the next page, if there is one.
    pub(crate) next: Option<String>,
}

/// A bucket of the account.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Bucket {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) creation_date: String,
}

/// `(code, message)` of an S3 error, if this is one.
pub(crate) fn error(body: &str) -> Option<(String, String)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Document {
        code: String,
        #[serde(default)]
        message: String,
    }
    if !body.contains("<Error>") && !body.contains("<Error ") {
        return None;
    }
    let document: Document = quick_xml::de::from_str(body).ok()?;
    Some((document.code, document.message))
}

/// One page of ListObjectsV2 with `encoding-type=url`.
pub(crate) fn page(body: &str) -> Result<Page, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Document {
        #[serde(default)]
        contents: Vec<Contents>,
        #[serde(default)]
        common_prefixes: Vec<CommonPrefix>,
        #[serde(default)]
        is_truncated: bool,
        next_continuation_token: Option<String>,
        encoding_type: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Contents {
        key: String,
        size: u64,
        #[serde(default)]
        last_modified: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct CommonPrefix {
        prefix: String,
    }
    let document: Document = read(body)?;
    let encoded = document.encoding_type.is_some();
    let text = |text: String| if encoded { decode(&text) } else { Ok(text) };
    Ok(Page {
        objects: document
            .contents
            .into_iter()
            .map(|object| {
                Ok(Listed { key: text(object.key)?, size: object.size, modified: object.last_modified })
            })
            .collect::<Result<_, Error>>()?,
        folders: document
            .common_prefixes
            .into_iter()
            .map(|folder| text(folder.prefix))
            .collect::<Result<_, _>>()?,
        next: document.next_continuation_token.filter(|_| document.is_truncated),
    })
}

/// `encoding-type=url` writes a space as `+` on some servers and as `%20` on others, and a plus always as `%2B`.
fn decode(text: &str) -> Result<String, Error> {
    let spaced = text.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| Error::Garbled("a key is not UTF-8".to_owned()))
}

/// The buckets of ListBuckets.
pub(crate) fn buckets(body: &str) -> Result<Vec<Bucket>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Document {
        #[serde(default)]
        buckets: Buckets,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Buckets {
        #[serde(default)]
        bucket: Vec<Bucket>,
    }
    Ok(read::<Document>(body)?.buckets.bucket)
}

/// The id of CreateMultipartUpload.
pub(crate) fn upload_id(body: &str) -> Result<String, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Document {
        upload_id: String,
    }
    Ok(read::<Document>(body)?.upload_id)
}

/// What DeleteObjects could not delete, as (key, reason).
pub(crate) fn delete_failures(body: &str) -> Result<Vec<(String, String)>, Error> {
    #[derive(Deserialize)]
    struct Document {
        #[serde(rename = "Error", default)]
        errors: Vec<Failure>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Failure {
        #[serde(default)]
        key: String,
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let document: Document = read(body)?;
    Ok(document.errors.into_iter().map(|f| (f.key, format!("{} ({})", f.message, f.code))).collect())
}

/// The body of CompleteMultipartUpload.
pub(crate) fn complete(parts: &[(u32, String)]) -> String {
    let parts: String = parts
        .iter()
        .map(|(number, etag)| {
            format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>", escape(etag))
        })
        .collect();
    format!(
        "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{parts}</CompleteMultipartUpload>"
    )
}

/// The body of DeleteObjects.
pub(crate) fn delete(keys: &[String]) -> String {
    let keys: String =
        keys.iter().map(|key| format!("<Object><Key>{}</Key></Object>", escape(key))).collect();
    format!("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>{keys}</Delete>")
}

/// Whether XML can carry this text at all, and every parser gives it back unchanged.
pub(crate) fn carries(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'))
        && text.trim_matches([' ']) == text
}

fn escape(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}

fn read<T: for<'de> Deserialize<'de>>(body: &str) -> Result<T, Error> {
    quick_xml::de::from_str(body).map_err(|error| Error::Garbled(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read() {
        let body = r#"<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Name>b</Name><Prefix></Prefix><KeyCount>3</KeyCount><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType>
            <IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>
            <Contents><Key>a+b%2B%25%C3%BC/%0A</Key><LastModified>2024-12-28T00:00:00.000Z</LastModified><ETag>&quot;x&quot;</ETag>
            <Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>
            <Contents><Key>c</Key><LastModified>x</LastModified><Size>0</Size></Contents>
            <CommonPrefixes><Prefix>d%20e/</Prefix></CommonPrefixes></ListBucketResult>"#;
        let page = page(body).expect("valid");
        assert_eq!(page.objects[0].key, "a b+%ü/\n");
        assert_eq!((page.objects.len(), page.objects[0].size), (2, 7));
        assert_eq!(page.folders, ["d e/"]);
        assert_eq!(page.next.as_deref(), Some("t"));
    }

    #[test]
    fn an_empty_page_is_read() {
        let body = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
        assert_eq!(page(body).expect("valid"), Page::default());
        assert!(page("<html>").is_err());
    }

    #[test]
    fn buckets_are_read() {
        let body = "<ListAllMyBucketsResult><Owner><ID>i</ID></Owner><Buckets><Bucket><Name>a</Name>\
            <CreationDate>d</CreationDate></Bucket><Bucket><Name>b</Name></Bucket></Buckets></ListAllMyBucketsResult>";
        let names: Vec<String> =
            buckets(body).expect("valid").into_iter().map(|bucket| bucket.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(
            buckets("<ListAllMyBucketsResult><Buckets/></ListAllMyBucketsResult>").expect("valid"),
            []
        );
    }

    #[test]
    fn errors_are_read_and_nothing_else_is_one() {
        let body = "<?xml version=\"1.0\"?>\n<Error><Code>NoSuchKey</Code><Message>gone</Message><Key>k</Key></Error>";
        assert_eq!(error(body), Some(("NoSuchKey".into(), "gone".into())));
        assert_eq!(error("<CompleteMultipartUploadResult/>"), None);
        assert_eq!(error("Error"), None);
    }

    #[test]
    fn documents_are_written() {
        assert_eq!(upload_id("<X><UploadId>u</UploadId></X>").expect("valid"), "u");
        assert!(
            complete(&[(1, "\"e\"".into())]).contains("<PartNumber>1</PartNumber><ETag>&quot;e&quot;</ETag>")
        );
        assert!(delete(&["a<&>b".into()]).contains("<Key>a&lt;&amp;&gt;b</Key>"));
        let failures = delete_failures(
            "<DeleteResult><Error><Key>k</Key><Code>C</Code><Message>m</Message></Error></DeleteResult>",
        );
        assert_eq!(failures.expect("valid"), [("k".to_owned(), "m (C)".to_owned())]);
        assert_eq!(delete_failures("<DeleteResult/>").expect("valid"), []);
    }

    #[test]
    fn some_keys_do_not_fit_into_xml() {
        assert!(carries("a b/ü+%"));
        for key in ["a\nb", "\u{1}", "a\u{ffff}", " a", "a "] {
            assert!(!carries(key), "{key:?}");
        }
    }
}
