//! What is told of what is done to buckets and objects: each thing once, to its owner, and nothing of what failed.

mod objects_support;

use cyxcloud_core::OwnerId;
use cyxcloud_gateway::events::{Event, Heard, Listener};
use objects_support::Gateway;

fn told(listener: &mut Listener) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(Heard::Notice(notice)) = listener.told() {
        told.push(match &notice.event {
            Event::FileCreated { bucket, key, size } => format!("+ {bucket}/{key} {size}"),
            Event::FileDeleted { bucket, key } => format!("- {bucket}/{key}"),
            Event::FileProgress { bucket, key, progress, part } => {
                format!("{bucket}/{key} {part:?} {progress}")
            }
            Event::BucketCreated { bucket } => format!("+ {bucket}"),
            Event::BucketDeleted { bucket } => format!("- {bucket}"),
            other => panic!("{other:?}"),
        });
    }
    told
}

#[tokio::test]
async fn what_was_done_is_told_and_what_was_not_is_not() {
    let gateway = Gateway::roomy().await;
    let mut owner = gateway.events.listen(gateway.caller);
    let mut stranger = gateway.events.listen(OwnerId::from_random([2; 16]));
    gateway.put("/photos", b"").await.expect(200);
    assert_eq!(told(&mut owner), ["+ photos"]);
    gateway.put("/photos", b"").await.expect(200);
    assert_eq!(told(&mut owner), [""; 0], "it was there before");

    gateway.put("/photos/a%20b", b"hello").await;
    gateway.put("/photos/a%20b", b"again!").await;
    gateway.put_with("/photos/copy", &[("x-amz-copy-source", "/photos/a%20b")], b"").await.expect(200);
    assert_eq!(told(&mut owner), ["+ photos/a b 5", "+ photos/a b 6", "+ photos/copy 6"]);

    let md5 = [("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==")];
    gateway.put_with("/photos/wrong", &md5, b"x").await.error(400, "BadDigest");
    gateway.put_with("/photos/copy", &[("if-none-match", "*")], b"x").await.error(412, "PreconditionFailed");
    gateway.put("/nowhere/k", b"x").await.error(404, "NoSuchBucket");
    gateway.delete("/photos/none").await.expect(204);
    gateway.delete("/photos").await.error(409, "BucketNotEmpty");
    gateway.as_somebody_else().put("/photos/k", b"x").await.error(403, "AccessDenied");
    gateway.as_somebody_else().delete("/photos/copy").await.error(403, "AccessDenied");
    assert_eq!(told(&mut owner), [""; 0]);

    let begun = gateway.post("/photos/parts?uploads", "").await;
    let id = begun.element("UploadId").expect("an upload").to_owned();
    let part = gateway.put(&format!("/photos/parts?partNumber=2&uploadId={id}"), b"tail").await;
    let etag = part.header("etag").expect("an etag");
    let list = format!(
        "<CompleteMultipartUpload><Part><PartNumber>2</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    );
    assert_eq!(told(&mut owner), ["photos/parts Some(2) 100"]);
    gateway.post(&format!("/photos/parts?uploadId={id}"), &list).await;
    assert_eq!(told(&mut owner), ["+ photos/parts 4"]);

    gateway.delete("/photos/a%20b").await;
    let document = "<Delete><Object><Key>copy</Key></Object><Object><Key>none</Key></Object><Object><Key>parts</Key></Object></Delete>";
    gateway.post("/photos?delete", document).await;
    gateway.delete("/photos").await;
    assert_eq!(told(&mut owner), ["- photos/a b", "- photos/copy", "- photos/parts", "- photos"]);
    assert_eq!(told(&mut stranger), [""; 0], "none of it is anybody else's business");
}
