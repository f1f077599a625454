//! Marks of this process, read as a parent would read them.

use super::region::{Region, current};
use super::{Kind, MarkedThread, VersionMark, keep_inputs};
use crate::model::{InferenceRequest, ModelName, NamedTensor, Signature, TensorSpec, Version};
use crate::tensor::{Data, DataType, Shape, Tensor};
use bytes::Bytes;

fn mark(model: &str, version: &str) -> VersionMark {
    VersionMark::register(&model.parse::<ModelName>().unwrap(), version.parse::<Version>().unwrap(), "abc")
}

/// This thread's mark, as [`Region::read`] gives it.
fn mine() -> Option<MarkedThread> {
    let me = super::thread::system_id();
    current().read().inside.into_iter().find(|thread| thread.thread == me)
}

#[test]
fn a_thread_is_inside_until_the_mark_is_dropped() {
    let iris = mark("iris", "3");
    assert_eq!(mine(), None);
    let inside = iris.enter(Kind::Run);
    let thread = mine().unwrap();
    assert_eq!(thread.kind, Kind::Run);
    let version = thread.version.unwrap();
    assert_eq!((version.model.as_str(), version.version.number(), version.artifact.as_str()), ("iris", 3, "abc"));
    drop(inside);
    assert_eq!(mine(), None);
}

#[test]
fn a_mark_inside_another_keeps_the_outer_kind() {
    let (outer, inner) = (mark("outer", "1"), mark("inner", "2"));
    let verifying = outer.enter(Kind::Verify);
    let run = inner.enter(Kind::Run);
    let seen = |kind, model: &str| {
        let thread = mine().unwrap();
        assert_eq!((thread.kind, thread.version.unwrap().model.as_str()), (kind, model));
    };
    seen(Kind::Verify, "outer");
    drop(run);
    seen(Kind::Verify, "outer");
    drop(verifying);
    assert_eq!(mine(), None);
}

#[test]
fn a_panic_in_an_engine_removes_the_mark() {
    let version = mark("panics", "1");
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _inside = version.enter(Kind::Run);
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(caught.is_err());
    assert_eq!(mine(), None);
}

#[test]
fn names_are_reused_and_a_version_without_one_is_still_marked() {
    let region = Region::private_for_tests();
    let first = region.add_name("a", 1, "x").unwrap();
    region.free_name(first);
    assert_eq!(region.name(first), None);
    assert_eq!(region.add_name("b", 2, "y"), Some(first), "a free entry is used again");
    assert_eq!(region.name(first), Some(("b".to_owned(), 2, "y".to_owned())));
    assert_eq!(region.add_name(&"m".repeat(129), 1, ""), None, "a name that does not fit is refused");
    let unnamed = VersionMark::default().enter(Kind::Load);
    let thread = mine().unwrap();
    assert_eq!((thread.kind, thread.version), (Kind::Load, None));
    drop(unnamed);
}

#[test]
fn a_full_table_of_names_refuses_more() {
    let region = Region::private_for_tests();
    let mut added = 0;
    while region.add_name("m", 1, "").is_some() {
        added += 1;
    }
    assert_eq!(added, 1 << 14);
    region.clear();
    assert!(region.name(0).is_none(), "a cleared region names nothing");
    assert_eq!(region.add_name("m", 1, ""), Some(0));
}

#[test]
#[cfg(target_os = "linux")]
fn another_process_reads_what_was_written() {
    let written = Region::create(0).unwrap();
    let read = Region::open_for_tests(written.file().unwrap().try_clone_to_owned().unwrap()).unwrap();
    let name = written.add_name("iris", 7, "digest").unwrap();
    let cell = written.claim_cell(41, "infer-0").unwrap();
    cell.mark.store((name as u64 + 1) << 8 | Kind::Shadow as u64, std::sync::atomic::Ordering::Relaxed);
    let [thread] = &read.read().inside[..] else { panic!("one thread is inside") };
    assert_eq!((thread.thread, thread.name.as_str(), thread.kind), (41, "infer-0", Kind::Shadow));
    assert_eq!(thread.version.as_ref().unwrap().artifact, "digest");
    assert!(written.set_message("reports"));
    assert_eq!(read.message(), "reports");
    assert!(!written.set_message(&"x".repeat(1 << 20)), "a message that does not fit is refused");
    assert_eq!(read.message(), "");
    read.set_stored(3);
    assert_eq!(written.stored(), 3);
    read.clear();
    assert_eq!(written.read(), super::Reading::default());
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_of_another_program_is_refused() {
    let file = |bytes: usize| {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, bytes as u64).unwrap();
        file
    };
    assert!(Region::open_for_tests(file(10)).unwrap_err().to_string().contains("too small"));
    assert!(Region::open_for_tests(file(16 << 20)).unwrap_err().to_string().contains("another program"));
}

#[test]
#[cfg(target_os = "linux")]
fn kept_inputs_are_the_body_of_a_request() {
    let spec = |name: &str, datatype| TensorSpec { name: name.into(), datatype, dims: None };
    let signature = Signature::new(
        vec![spec("x", DataType::Fp32), spec("s", DataType::Bytes)],
        vec![spec("y", DataType::Fp32), spec("z", DataType::Fp32)],
    );
    let tensor = |name: &str, data: Data| NamedTensor {
        name: name.to_owned(),
        tensor: Tensor::new(Shape::new(&[1, data.len()]), data).unwrap(),
    };
    let inputs = vec![
        tensor("x", Data::Fp32(vec![1.5, f32::NAN].into())),
        tensor("s", Data::Bytes(vec![Bytes::from_static(b"a"), Bytes::from_static(b"\xff\0")])),
    ];
    let request = InferenceRequest { inputs, outputs: Some(vec!["z".to_owned()]), ..InferenceRequest::default() };
    let checked = signature.check(request).unwrap();

    let region = Region::create(256).unwrap();
    let cell = region.claim_cell(1, "test").unwrap();
    assert!(super::inputs::copy_to(&region, cell, &signature, &checked));
    let kept = super::KeptInputs::read(&region, cell).unwrap();
    let body = kept.body();
    let split = body.iter().rposition(|byte| *byte == b'}').unwrap() + 1;
    let head: serde_json::Value = serde_json::from_slice(&body[..split]).unwrap();
    assert_eq!(head["inputs"][0]["name"], "x");
    assert_eq!(head["inputs"][1]["parameters"]["binary_data_size"], 11);
    assert_eq!(head["outputs"], serde_json::json!([{"name": "z"}]));
    let data = [&1.5f32.to_le_bytes()[..], &f32::NAN.to_le_bytes(), b"\x01\0\0\0a", b"\x02\0\0\0\xff\0"].concat();
    assert_eq!(&body[split..], data);

    let small = Region::create(16).unwrap();
    let cell = small.claim_cell(1, "test").unwrap();
    assert!(!super::inputs::copy_to(&small, cell, &signature, &checked), "inputs that do not fit are not kept");
    assert_eq!(super::KeptInputs::read(&small, cell), None);
    // This process has no region that keeps inputs.
    drop(keep_inputs(&signature, &checked));
}
