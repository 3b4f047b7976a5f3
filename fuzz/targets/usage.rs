//! Searches for an input that breaks `properties::usage`.
// No `forbid(unsafe_code)` in the targets: libFuzzer calls an exported symbol, which the macro makes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidegate_fuzz::properties::usage::check(data));
