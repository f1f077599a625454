//! Weights are in memory once for all sessions, and freed with the model.

use super::*;
use std::process::Command;

/// Set in the child process that measures, to the name of the engine.
const ENGINE: &str = "SLUICEGATE_MEMORY_TEST_ENGINE";

/// Set in the child process that measures the peak, to the place of the weights.
const PLACE: &str = "SLUICEGATE_MEMORY_TEST_PLACE";

/// 45 MB of weights. Each layer has another shape, because engines store equal tensors once.
const WIDTHS: [usize; 4] = [1024, 2048, 2560, 1536];

/// Resident memory is that of the whole process, in which other tests run: each engine is measured in a child process.
#[test]
fn sessions_share_the_weights_and_dropping_the_model_frees_them() {
    if let Ok(engine) = std::env::var(ENGINE) {
        return measure(&engine);
    }
    for engine in engines() {
        let name = "backend::conformance::memory::sessions_share_the_weights_and_dropping_the_model_frees_them";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(ENGINE, engine.name())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && said.contains("1 passed"), "{}: {said}", engine.name());
    }
}

fn measure(name: &str) {
    let engine = engines().into_iter().find(|e| e.name() == name).unwrap();
    // Allocations that the engine makes once.
    warm(&*engine);
    let dir = tempfile::tempdir().unwrap();
    generated::mlp(dir.path(), &WIDTHS);
    let weights: usize = WIDTHS.windows(2).map(|w| w[0] * w[1] * 4).sum();
    let mb = |bytes: usize| bytes / 1_000_000;

    let before = resident();
    let model = load(&*engine, dir.path());
    let loaded = resident();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let model = &model;
            scope.spawn(move || {
                let mut session = Arc::clone(model).session().unwrap();
                for rows in [1, 4] {
                    let x = floats(&[rows, WIDTHS[0]], &vec![1.0; rows * WIDTHS[0]]);
                    let got = session.run(&request(&**model, &[("x", x)], None), &Interrupt::new()).unwrap();
                    let Data::Fp32(y) = got[0].data() else { panic!("floats") };
                    assert!(y.iter().all(|v| (v - 1.0).abs() < 1e-3), "an average of ones is one, got {}", y[0]);
                }
            });
        }
    });
    let ran = resident();
    drop(model);
    let dropped = resident();
    let figures = format!(
        "{name}: {} MB of weights; resident before {}, loaded {}, after four sessions {}, dropped {}",
        mb(weights),
        mb(before),
        mb(loaded),
        mb(ran),
        mb(dropped)
    );
    println!("{figures}");
    assert!(ran.saturating_sub(before) < weights * 13 / 10, "the weights are in memory more than once: {figures}");
    assert!(dropped.saturating_sub(before) < weights * 3 / 10, "the weights were not freed: {figures}");
}

/// The peak of a load, as a multiple of the weights. The memory budget counts twice what is in `model.onnx` and three times what is beside
/// it (`lifecycle::memory`).
#[test]
fn the_peak_of_a_load_is_what_the_memory_budget_counts() {
    if let Ok(place) = std::env::var(PLACE) {
        return measure_peak(&place);
    }
    for place in ["inside", "beside"] {
        let name = "backend::conformance::memory::the_peak_of_a_load_is_what_the_memory_budget_counts";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(PLACE, place)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && said.contains("1 passed"), "{place}: {said}");
    }
}

fn measure_peak(place: &str) {
    let Some(engine) = engines().into_iter().find(|e| e.name() == "onnxruntime") else { return };
    warm(&*engine);
    let dir = tempfile::tempdir().unwrap();
    let write = if place == "inside" { generated::mlp } else { generated::mlp_external };
    write(dir.path(), &WIDTHS);
    let weights: usize = WIDTHS.windows(2).map(|w| w[0] * w[1] * 4).sum();
    let before = resident();
    // Sets the peak to what is resident now (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let model = load(&*engine, dir.path());
    let peak = status("VmHWM:");
    let loaded = resident();
    let x = floats(&[1, WIDTHS[0]], &vec![1.0; WIDTHS[0]]);
    let got = run(&model, &[("x", x)], None).unwrap();
    let Data::Fp32(y) = got.outputs[0].1.data() else { panic!("floats") };
    assert!((y[0] - 1.0).abs() < 1e-3, "an average of ones is one, got {}", y[0]);
    let times = |bytes: usize| bytes.saturating_sub(before) as f64 / weights as f64;
    let figures = format!("weights {place}: peak {:.2}, loaded {:.2}", times(peak), times(loaded));
    println!("{figures}");
    let counted = if place == "inside" { 2.0 } else { 3.0 };
    // The session's own tables, and the largest tensor a second time while it is stored in another order.
    assert!(times(peak) < counted + 0.4, "{figures}");
    assert!(times(loaded) < 1.3, "{figures}");
}

fn warm(engine: &dyn Backend) {
    let model = load(engine, &fixture("models", "mlp").dir);
    run(&model, &[("x", floats(&[1, 2], &[1.0, 2.0]))], None).unwrap();
}

/// Resident bytes of this process, after free pages were returned to the system.
fn resident() -> usize {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "glibc keeps freed pages until malloc_trim is called")]
    // SAFETY: malloc_trim(3) takes no pointers and is safe to call at any time.
    unsafe {
        libc::malloc_trim(0);
    }
    status("VmRSS:")
}

fn status(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
