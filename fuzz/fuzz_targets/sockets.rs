#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| cyxcloud_fuzz::run("sockets", data));
