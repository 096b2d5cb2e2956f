//! Listings through the S3 surface: order, folding, paging and encoding.

mod objects_support;

use cyxcloud_core::stripe::INLINE_MAX;
use objects_support::Gateway;

const KEYS: [&str; 9] = ["a", "a b+c%", "b/1", "b/2", "b/sub/3", "c/", "d//e", "ü", "\u{1f600}"];

fn encoded(key: &str) -> String {
    key.bytes().map(|byte| if byte == b'/' { "/".to_owned() } else { format!("%{byte:02X}") }).collect()
}

async fn gateway() -> Gateway {
    let gateway = Gateway::start(INLINE_MAX).await.with_bucket().await;
    for key in KEYS {
        gateway.put(&format!("/bucket/{}", encoded(key)), key.as_bytes()).await.expect(200);
    }
    gateway
}

#[tokio::test]
async fn keys_come_in_byte_order() {
    let gateway = gateway().await;
    for uri in ["/bucket", "/bucket?list-type=2", "/bucket?delimiter=", "/bucket?prefix="] {
        let list = gateway.get(uri).await.expect(200);
        assert_eq!(list.elements("Key"), KEYS, "{uri}");
        assert_eq!(list.element("IsTruncated").as_deref(), Some("false"));
        assert_eq!(list.element("MaxKeys").as_deref(), Some("1000"));
    }
    let list = gateway.get("/bucket?list-type=2").await;
    assert_eq!(list.element("KeyCount").as_deref(), Some("9"));
    assert!(list.element("Owner").is_none());
    assert!(list.element("ETag").is_some_and(|etag| etag.starts_with('"')));
    let owned = gateway.get("/bucket?list-type=2&fetch-owner=true").await;
    assert!(owned.element("Owner").is_some());
    assert!(gateway.get("/bucket").await.element("Owner").is_some());
}

#[tokio::test]
async fn prefixes_fold() {
    let gateway = gateway().await;
    let top = gateway.get("/bucket?list-type=2&delimiter=/").await.expect(200);
    assert_eq!(top.elements("Key"), ["a", "a b+c%", "ü", "\u{1f600}"]);
    assert_eq!(prefixes(&top), ["b/", "c/", "d/"]);
    let below = gateway.get("/bucket?list-type=2&delimiter=/&prefix=b/").await.expect(200);
    assert_eq!(below.elements("Key"), ["b/1", "b/2"]);
    assert_eq!(prefixes(&below), ["b/sub/"]);
    let none = gateway.get("/bucket?prefix=zzz").await.expect(200);
    assert!(none.elements("Key").is_empty());
}

fn prefixes(reply: &objects_support::Reply) -> Vec<String> {
    let folded = reply.elements("CommonPrefixes");
    folded.iter().map(|inner| inner.replace("<Prefix>", "").replace("</Prefix>", "")).collect()
}

#[tokio::test]
async fn pages_go_on_where_the_last_one_ended() {
    let gateway = gateway().await;
    for delimiter in ["", "&delimiter=/"] {
        let all = gateway.get(&format!("/bucket?list-type=2{delimiter}")).await;
        let all = (all.elements("Key"), prefixes(&all));
        let (mut keys, mut folded, mut token) = (Vec::new(), Vec::new(), String::new());
        for _ in 0..20 {
            let page =
                gateway.get(&format!("/bucket?list-type=2&max-keys=2{delimiter}{token}")).await.expect(200);
            keys.extend(page.elements("Key"));
            folded.extend(prefixes(&page));
            match page.element("NextContinuationToken") {
                Some(next) => token = format!("&continuation-token={next}"),
                None => break,
            }
        }
        assert_eq!((keys, folded), all);
        let (mut keys, mut folded, mut marker) = (Vec::new(), Vec::new(), String::new());
        for _ in 0..20 {
            let page = gateway.get(&format!("/bucket?max-keys=2{delimiter}{marker}")).await.expect(200);
            keys.extend(page.elements("Key"));
            folded.extend(prefixes(&page));
            match page.element("NextMarker") {
                Some(next) => marker = format!("&marker={}", encoded(&next)),
                None => break,
            }
        }
        assert_eq!((keys, folded), all);
    }
    let after = gateway.get("/bucket?list-type=2&start-after=b/2").await.expect(200);
    assert_eq!(after.elements("Key"), &KEYS[4..]);
    let none = gateway.get("/bucket?list-type=2&max-keys=0").await.expect(200);
    assert_eq!(none.element("IsTruncated").as_deref(), Some("false"));
    assert!(none.elements("Key").is_empty());
    gateway.get("/bucket?max-keys=-1").await.error(400, "InvalidArgument");
    gateway.get("/bucket?max-keys=many").await.error(400, "InvalidArgument");
    gateway.get("/bucket?list-type=2&continuation-token=!").await.error(400, "InvalidArgument");
}

#[tokio::test]
async fn keys_can_be_encoded() {
    let gateway = gateway().await;
    let list = gateway.get("/bucket?encoding-type=url&delimiter=/&prefix=a%20").await.expect(200);
    assert_eq!(list.elements("Key"), ["a%20b%2Bc%25"]);
    assert_eq!(list.element("EncodingType").as_deref(), Some("url"));
    assert_eq!(list.element("Prefix").as_deref(), Some("a%20"));
    gateway.get("/bucket?encoding-type=odd").await.error(400, "InvalidArgument");
}
