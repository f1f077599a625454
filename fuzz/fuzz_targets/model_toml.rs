#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluicegate::fuzzing::model_toml(bytes));
