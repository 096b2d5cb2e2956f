//! S3 requests as they are once the door let them in, some after another: no answer is a failure of ours, documents are XML, and
//! what was put is what is got.

use http::{Method, Request};

use super::gateway::{check, served, well_formed, wipe};
use super::input::{Draft, Input};
use super::objects_support::{Gateway, Reply};
use super::runtime::block_on;
use cyxcloud_gateway::body::S3Body;

/// Requests in one input.
const REQUESTS_MAX: usize = 8;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    block_on(async {
        let gateway = served().await.gateway;
        let mut said = Said::default();
        for _ in 0..REQUESTS_MAX {
            if input.is_empty() {
                break;
            }
            let head = said.filled(&input.text(4_000));
            let body = input.some(16_000);
            one(&gateway, &head, body, &mut said).await;
        }
        wipe(&gateway).await;
    });
}

/// What former answers said, for those that come after.
#[derive(Default)]
struct Said {
    upload: String,
    etag: String,
}

impl Said {
    fn filled(&self, text: &str) -> String {
        text.replace("{upload}", &self.upload).replace("{etag}", &self.etag)
    }
}

/// One request: `METHOD address`, then `name:value` lines; and its body.
async fn one(gateway: &Gateway, head: &str, body: &[u8], said: &mut Said) {
    let body = match std::str::from_utf8(body) {
        Ok(text) => said.filled(text).into_bytes(),
        Err(_) => body.to_vec(),
    };
    let mut lines = head.lines();
    let Some((method, address)) = lines.next().and_then(|line| line.split_once(' ')) else { return };
    let mut request = Request::builder().method(method).uri(address);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        request = request.header(name, value);
    }
    // As the door hands it on: with the right length, or with none where the sender did not say.
    let request = request.header("content-length", body.len()).extension(gateway.principal());
    let Ok(request) = request.body(S3Body::from_bytes(body.clone().into())) else { return };
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let copies = request.headers().contains_key("x-amz-copy-source");
    let reply = gateway.call(request).await;
    check(&method, &reply);
    if reply.header("content-type") == Some("application/xml")
        && !reply.body.is_empty()
        && is_document(&method, &uri)
    {
        well_formed(&reply.body);
    }
    if let Some(upload) = element(&reply, "UploadId") {
        said.upload = upload;
    }
    if let Some(etag) = reply.header("etag") {
        said.etag = etag.to_owned();
    }
    let query = uri.query().unwrap_or_default();
    if method == Method::PUT && reply.status == 200 && is_object(uri.path()) && query.is_empty() && !copies {
        let read = gateway.get(uri.path()).await;
        assert_eq!((read.status.as_u16(), read.body.as_ref()), (200, body.as_slice()), "{uri}");
        assert_eq!(read.header("etag"), reply.header("etag"), "{uri}");
    }
}

fn is_object(path: &str) -> bool {
    path.trim_start_matches('/').split_once('/').is_some_and(|(_, key)| !key.is_empty())
}

/// Whether the answer is a document of ours rather than an object, which may say that it is XML.
fn is_document(method: &Method, uri: &http::Uri) -> bool {
    *method != Method::GET || !is_object(uri.path())
}

/// An element of an answer, if that is text.
fn element(reply: &Reply, name: &str) -> Option<String> {
    std::str::from_utf8(&reply.body).is_ok().then(|| reply.element(name)).flatten()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let script = |requests: &[(&str, &str)]| {
        let start = Draft::default().some("PUT /bucket").some("");
        let all = requests.iter().fold(start, |draft, (head, body)| draft.some(head).some(body));
        all.rest([])
    };
    vec![
        script(&[
            (
                "PUT /bucket/a%20b/%C3%BC\nx-amz-meta-k:v\ncontent-type:application/xml\nx-amz-checksum-crc32:NhCmhg==",
                "hello",
            ),
            ("GET /bucket/a%20b/%C3%BC\nrange:bytes=1-2\nif-match:{etag}", ""),
            ("HEAD /bucket/a%20b/%C3%BC?partNumber=1", ""),
            ("GET /bucket?list-type=2&prefix=a&delimiter=/&max-keys=1&encoding-type=url&start-after=A", ""),
            ("DELETE /bucket/a%20b/%C3%BC?versionId=null", ""),
        ]),
        script(&[
            ("POST /bucket/k?uploads\nx-amz-checksum-algorithm:CRC64NVME", ""),
            ("PUT /bucket/k?partNumber=1&uploadId={upload}", "part"),
            (
                "POST /bucket/k?uploadId={upload}",
                "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Part><PartNumber>1</PartNumber>\
                 <ETag>{etag}</ETag></Part></CompleteMultipartUpload>",
            ),
            (
                "GET /bucket/k?attributes\nx-amz-object-attributes:ETag,ObjectSize,ObjectParts,Checksum,StorageClass",
                "",
            ),
        ]),
        script(&[
            ("PUT /bucket/one", "1"),
            (
                "PUT /bucket/two\nx-amz-copy-source:/bucket/one\nx-amz-metadata-directive:REPLACE\nexpires:junk",
                "",
            ),
            (
                "POST /bucket?delete",
                "<Delete><Object><Key>one</Key></Object><Object><Key>t&#119;o</Key><VersionId>null</VersionId></Object>\
                 <Quiet>false</Quiet></Delete>",
            ),
            ("GET /bucket?versions&key-marker=a", ""),
        ]),
        script(&[
            ("GET /?max-buckets=1&prefix=b&continuation-token=YQ", ""),
            ("GET /bucket?location", ""),
            (
                "PUT /bucket?versioning",
                "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>",
            ),
            ("GET /bucket?uploads&key-marker=a&upload-id-marker=b&max-uploads=2", ""),
            ("GET /bucket?list-type=2&continuation-token=YQ&fetch-owner=true", ""),
        ]),
        script(&[
            ("POST /bucket/k?uploads", ""),
            ("PUT /bucket/k?partNumber=10000&uploadId={upload}\ncontent-md5:1B2M2Y8AsgTpgAmY7PhCfg==", ""),
            (
                "PUT /bucket/k?partNumber=2&uploadId={upload}\nx-amz-copy-source:bucket%2Fx\nx-amz-copy-source-range:bytes=0-1",
                "",
            ),
            ("GET /bucket/k?uploadId={upload}&max-parts=1&part-number-marker=1", ""),
            ("DELETE /bucket/k?uploadId={upload}", ""),
            ("OPTIONS /bucket/k\norigin:http://x\naccess-control-request-method:PUT", ""),
        ]),
    ]
}
