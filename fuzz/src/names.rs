//! Names that people give and the text they travel in: buckets, keys, paths, queries. One reading each, and the way back.

use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_core::sigv4::{canonical_query, query_pairs, uri_encode};
use cyxcloud_gateway::auth::{Mount, virtual_host_bucket};
use cyxcloud_gateway::fuzzing;

use super::input::Input;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let Ok(text) = std::str::from_utf8(input.rest()) else { return };
    match choice % 4 {
        0 => bucket(text),
        1 => key(text),
        2 => query(text),
        _ => path(text),
    }
}

fn bucket(text: &str) {
    let domains = ["s3.example.com".to_owned(), "example.com".to_owned()];
    if let Some(named) = virtual_host_bucket(text, &domains) {
        assert!(text.to_ascii_lowercase().starts_with(named.as_str()));
    }
    let Ok(name) = text.parse::<BucketName>() else { return };
    assert_eq!(name.as_str(), text);
    assert!((3..=63).contains(&text.len()));
    // It is itself in a path, in a host, and as the first component of one of our own addresses it cannot be.
    assert_eq!(uri_encode(text, true), text);
    assert!(text.parse::<std::net::IpAddr>().is_err());
    assert!(!BucketName::RESERVED.contains(&text));
    assert!(
        text.split('.').all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
    );
    for host in [format!("{text}.s3.example.com"), format!("{}.S3.EXAMPLE.COM.:8080", text.to_uppercase())] {
        assert_eq!(virtual_host_bucket(&host, &domains[..1]), Some(name.clone()), "{host}");
    }
}

fn key(text: &str) {
    let Ok(key) = ObjectKey::new(text) else {
        assert!(text.is_empty() || text.len() > ObjectKey::LEN_MAX);
        return;
    };
    assert_eq!((key.as_str(), key.as_bytes()), (text, text.as_bytes()));
    assert!(!key.file_name().is_empty() && text.contains(key.file_name()));
    for encode_slash in [false, true] {
        let sent = uri_encode(text, encode_slash);
        assert!(sent.bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(fuzzing::decode(&sent).as_deref(), Some(text));
    }
}

fn query(text: &str) {
    let Some(pairs) = fuzzing::query_pairs(text) else { return };
    // Both readings of a query are the same: what is signed is what is served.
    let lax: Vec<(String, String)> = query_pairs(text)
        .into_iter()
        .map(|(name, value)| {
            (String::from_utf8(name).expect("text"), String::from_utf8(value).expect("text"))
        })
        .collect();
    assert_eq!(pairs, lax);
    let named: Vec<(String, String)> = pairs.iter().filter(|(name, _)| !name.is_empty()).cloned().collect();
    assert_eq!(fuzzing::query_pairs(&fuzzing::query_text(&named)), Some(named));
    let canonical = canonical_query(&pairs);
    assert_eq!(canonical_query(&query_pairs(&canonical)), canonical);
    let sorted = |mut pairs: Vec<(String, String)>| {
        pairs.sort();
        pairs
    };
    assert_eq!(sorted(fuzzing::query_pairs(&canonical).expect("canonical")), sorted(pairs));
}

fn path(text: &str) {
    let bucket: BucketName = "photos".parse().expect("a name");
    let Ok(plain) = fuzzing::plain_path(text, Mount::Root, None) else {
        assert_eq!(fuzzing::decode(text), None);
        return;
    };
    assert!(plain.starts_with('/') && plain.bytes().all(|byte| byte.is_ascii_graphic()));
    assert_eq!(fuzzing::plain_path(&plain, Mount::Root, None).expect("plain already"), plain);
    let rooted = if text.starts_with('/') { text.to_owned() } else { format!("/{text}") };
    if fuzzing::decode(text).is_some_and(|decoded| decoded.starts_with('/') == text.starts_with('/')) {
        assert_eq!(fuzzing::decode(&plain), fuzzing::decode(&rooted));
        let below = fuzzing::plain_path(&format!("/s3{rooted}"), Mount::Prefix("/s3"), None);
        assert_eq!(below.expect("below"), plain);
    }
    let hosted = fuzzing::plain_path(text, Mount::Root, Some(&bucket)).expect("decodes");
    assert_eq!(hosted, format!("/photos{plain}"));
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "\0a.bucket-1",
        "\0photos.s3.example.com:8080",
        "\x00192.168.1.1",
        "\x01a/b c/ü%00/..",
        "\x01dir/",
        "\x02prefix=a%2Fb&max-keys=2&&x=+%20&list-type=2",
        "\x02=&=v&a=b=c&%C3%BC=%25",
        "\x03/bucket/a%20b/%E2%82%AC/+",
        "\x03/%2e%2e/%2F//x",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
