//! Searches for an input that breaks `properties::table`.
// No `forbid(unsafe_code)` in the targets: libFuzzer calls an exported symbol, which the macro makes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidegate_fuzz::properties::table::check(data));
