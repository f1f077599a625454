use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;

const MIB: usize = 1 << 20;

fn peer(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

#[test]
fn bytes_come_back_when_the_hold_is_dropped() {
    let budget = Budget::new(16 * MIB);
    let account = budget.connection(Some(peer(1)));
    let hold = Hold::open(&budget, &account).unwrap();
    assert_eq!(
        (budget.held(), account.held()),
        (16 << 10, 0),
        "a small request counts one step, and not on its connection"
    );
    hold.grow(3 * MIB).unwrap();
    assert_eq!((budget.held(), account.held()), (3 * MIB, 3 * MIB - (16 << 10)));
    hold.shrink_to(MIB);
    assert_eq!((hold.used(), budget.held()), (MIB, MIB));
    drop(hold);
    assert_eq!((budget.held(), account.held(), budget.refused()), (0, 0, 0));
}

#[test]
fn a_refusal_takes_nothing_and_says_what_is_full() {
    let budget = Budget::new(16 * MIB);
    let (one, two) = (budget.connection(Some(peer(1))), budget.connection(Some(peer(2))));
    let first = Hold::open(&budget, &one).unwrap();
    first.grow(8 * MIB).unwrap();
    let failure = first.grow(1).unwrap_err();
    assert_eq!(
        (failure.code, first.used()),
        (Code::BodyTooLarge, 8 * MIB),
        "half of the limit is the most for one connection"
    );
    let second = Hold::open(&budget, &one).unwrap();
    let failure = second.grow(MIB).unwrap_err();
    assert_eq!(failure.code, Code::TooManyRequests);
    assert!(failure.message.contains("of this connection hold 8.0 MiB"), "{}", failure.message);
    let third = Hold::open(&budget, &two).unwrap();
    third.grow(5 * MIB).unwrap();
    let failure = third.grow(MIB).unwrap_err();
    assert_eq!((failure.code, third.used()), (Code::Overloaded, 5 * MIB), "an eighth is left to small requests");
    assert!(failure.message.contains("13.0 of 16.0") || failure.message.contains("of 16.0 MiB"), "{}", failure.message);
    let small = Hold::open(&budget, &two).unwrap();
    small.grow(60 << 10).expect("small requests go on");
    assert_eq!(budget.refused(), 3);
}

#[test]
fn the_connections_of_one_peer_leave_room_for_others() {
    let budget = Budget::new(16 * MIB);
    let holds: Vec<Hold> = (0..4).filter_map(|_| Hold::open(&budget, &budget.connection(Some(peer(1)))).ok()).collect();
    let granted = holds.iter().filter(|hold| hold.grow(4 * MIB).is_ok()).count();
    assert_eq!(granted, 3, "three quarters of 16 MiB");
    let other = Hold::open(&budget, &budget.connection(Some(peer(2)))).unwrap();
    other.grow(MIB).expect("another peer still gets memory");
}

#[test]
fn room_doubles_up_to_what_is_needed_at_most() {
    let budget = Budget::new(64 * MIB);
    let hold = Hold::open(&budget, &budget.connection(None)).unwrap();
    let mut vec: Vec<u64> = Vec::new();
    hold.room(&mut vec, 1000, 1500).unwrap();
    assert_eq!((vec.capacity(), hold.used()), (1000, 8000));
    vec.resize(1000, 0);
    hold.room(&mut vec, 1, 1500).unwrap();
    assert_eq!((vec.capacity(), hold.used()), (1500, 12_000), "not more than 1500 elements");
    let failure = hold.room(&mut vec, usize::MAX / 16, usize::MAX).unwrap_err();
    assert_eq!((failure.code, hold.used()), (Code::BodyTooLarge, 12_000));
    let uncounted = Hold::uncounted();
    let failure = uncounted.room(&mut vec, usize::MAX / 16, usize::MAX).unwrap_err();
    assert_eq!(failure.code, Code::Overloaded, "no allocation of that size succeeds: {}", failure.message);
}

proptest! {
    /// Whatever is grown, shrunk and dropped, by many requests over several connections: the counts are those of the holds that live,
    /// never over the limit, and zero at the end.
    #[test]
    fn nothing_is_lost_and_nothing_is_given_back_twice(
        steps in prop::collection::vec((0usize..8, 0u8..4, 0usize..4 * MIB), 1..200),
    ) {
        let budget = Budget::new(8 * MIB);
        let accounts: Vec<Account> = (0..4u8).map(|n| budget.connection(Some(peer(n / 2)))).collect();
        let mut holds: Vec<Option<Hold>> = (0..8).map(|_| None).collect();
        for (slot, action, bytes) in steps {
            match (&holds[slot], action) {
                (None, _) => holds[slot] = Hold::open(&budget, &accounts[slot % 4]).ok(),
                (Some(hold), 0 | 1) => drop(hold.grow(bytes)),
                (Some(hold), 2) => hold.shrink_to(bytes),
                (Some(_), _) => holds[slot] = None,
            }
            let taken: usize = holds.iter().flatten().map(|hold| hold.used().div_ceil(16 << 10).max(1) * (16 << 10)).sum();
            prop_assert_eq!(budget.held(), taken);
            prop_assert!(budget.held() <= budget.limit());
        }
        drop(holds);
        prop_assert_eq!(budget.held(), 0);
        prop_assert!(accounts.iter().all(|account| account.held() == 0));
    }
}
