//! A run ends when it is interrupted, and its session goes on to give right answers.

use super::*;

#[test]
fn an_interrupted_run_ends_and_the_next_one_on_its_session_is_right() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        generated::mlp(dir.path(), &[64, 64, 32]);
        let model = load(&*engine, dir.path());
        let mut session = Arc::clone(&model).session().unwrap();
        let request = request(&*model, &[("x", floats(&[2, 64], &[1.0; 128]))], None);
        let interrupt = Interrupt::new();
        for _ in 0..3 {
            assert!(session.run(&request, &interrupt).is_ok());
            interrupt.request();
            let ended = session.run(&request, &interrupt);
            assert!(matches!(ended, Err(RunError::Interrupted)), "{}: {ended:?}", engine.name());
            interrupt.clear();
            let answer = session.run(&request, &interrupt).unwrap();
            assert_eq!(answer, [floats(&[2, 32], &[1.0; 64])], "{}", engine.name());
        }
    }
}

/// A `Loop` over a number in the request. tract has no such operator.
#[test]
fn an_endless_loop_ends_when_another_thread_interrupts_it() {
    let Some(engine) = onnxruntime() else { return };
    let dir = tempfile::tempdir().unwrap();
    generated::counting(dir.path());
    let model = load(&*engine, dir.path());
    let count = |n: i64| request(&*model, &[("n", tensor(&[], Data::Int64(vec![n].into())))], None);
    let (few, endless, interrupt) = (count(5), count(1_000_000_000_000), Interrupt::new());
    let mut session = Arc::clone(&model).session().unwrap();
    assert_eq!(session.run(&few, &interrupt).unwrap(), [tensor(&[], Data::Fp32(vec![5.0].into()))]);
    let ended = std::thread::scope(|scope| {
        let running = scope.spawn(|| session.run(&endless, &interrupt));
        std::thread::park_timeout(std::time::Duration::from_millis(20));
        assert!(!running.is_finished());
        interrupt.request();
        running.join().unwrap()
    });
    assert!(matches!(ended, Err(RunError::Interrupted)), "{ended:?}");
    interrupt.clear();
    assert_eq!(session.run(&few, &interrupt).unwrap(), [tensor(&[], Data::Fp32(vec![5.0].into()))]);
}
