//! What a hostile server can tell the command line: keys that become files, and documents. No key leaves the target directory.

use std::path::{Component, Path};

use super::cli::{keys, xml};
use super::input::{Draft, Input};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8() % 3;
    let prefix = input.text(100);
    let Ok(text) = std::str::from_utf8(input.rest()) else { return };
    match choice {
        0 => down(&prefix, text),
        1 => up(&prefix, text),
        _ => documents(text),
    }
}

/// A key becomes a path of plain names below the target, or none; and the path becomes the key again.
fn down(prefix: &str, key: &str) {
    let folder = keys::folder(prefix);
    for key in [key.to_owned(), format!("{folder}{key}")] {
        let Ok(Some(path)) = keys::path_of(&folder, &key) else { continue };
        assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{path:?} for {key:?}");
        let target = Path::new("/target/directory");
        let place = target.join(&path);
        assert!(place.starts_with(target) && place != target);
        assert!(!place.to_string_lossy().contains('\0'));
        if let Ok(back) = keys::key_of(&folder, &path) {
            assert_eq!(back, key.strip_suffix('/').unwrap_or(&key));
        }
    }
}

/// A path that has a key comes back from it.
fn up(prefix: &str, path: &str) {
    let folder = keys::folder(prefix);
    let Ok(key) = keys::key_of(&folder, Path::new(path)) else { return };
    assert!(keys::check(&key).is_ok());
    // The path may be written with more slashes and dots than it has names.
    let plain: std::path::PathBuf = Path::new(path).components().collect();
    match keys::path_of(&folder, &key) {
        Ok(Some(back)) => assert_eq!(back, plain),
        Ok(None) => assert_eq!(plain.as_os_str(), ""),
        Err(error) => assert!(path.contains('\0'), "{error}"),
    }
}

fn documents(text: &str) {
    let _ = (xml::error(text), xml::buckets(text).is_ok(), xml::upload_id(text).is_ok());
    let _ = xml::delete_failures(text).is_ok();
    if let Ok(page) = xml::page(text) {
        for object in page.objects {
            down("", &object.key);
        }
    }
    // What we write we could read, where we say that it can be written.
    if xml::carries(text) && !text.is_empty() {
        let written = xml::delete(&[text.to_owned()]);
        let read = written.replace("Delete", "ListBucketResult").replace("Object>", "Contents>");
        let read =
            read.replace("</Contents>", "<Size>1</Size></Contents>").replace("<Quiet>true</Quiet>", "");
        let page = xml::page(&read).expect("well formed");
        assert_eq!(page.objects.len(), 1, "{read}");
        if !text.contains("Delete") {
            assert_eq!(page.objects[0].key, text);
        }
        assert!(xml::complete(&[(1, text.to_owned())]).contains("<PartNumber>1<"));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let one = |choice: u8, prefix: &str, text: &str| Draft::default().u8(choice).some(prefix).rest(text);
    vec![
        one(0, "", "a/b/c.txt"),
        one(0, "in", "../../etc/passwd"),
        one(0, "in/", "//etc"),
        one(0, "", "C:\\x/./y\0"),
        one(1, "photos", "2024/./ü//a b.jpg"),
        one(
            2,
            "",
            "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>\
             <NextContinuationToken>t</NextContinuationToken><Contents><Key>a+b%2F..%2Fc</Key><Size>7</Size></Contents>\
             <CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes></ListBucketResult>",
        ),
        one(2, "", "<Error><Code>NoSuchKey</Code><Message>a &lt; b</Message></Error>"),
        one(
            2,
            "",
            "<ListAllMyBucketsResult><Buckets><Bucket><Name>b</Name></Bucket></Buckets></ListAllMyBucketsResult>",
        ),
        one(2, "", "a <key> & \"another\""),
    ]
}
