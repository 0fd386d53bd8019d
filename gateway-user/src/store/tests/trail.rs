//! Publications, requests, the audit's chain, and what is pruned.

use super::*;
use crate::audit::Verifier;

fn publication(revision: &str, ceiling: u32) -> Publication {
    Publication {
        revision: revision.parse().unwrap(),
        at: WallTime(5),
        ceiling,
        rate: u32::MAX,
        paused: ceiling == 0,
    }
}

fn request(client: &str, id: &str, at: i64, answer: Option<&[u8]>) -> Request {
    Request {
        client: client.to_owned(),
        id: id.parse().unwrap(),
        digest: [at.to_be_bytes()[7]; 32],
        at: WallTime(at),
        salt: None,
        answer: answer.map(<[u8]>::to_vec),
    }
}

fn entry(number: u64, device: Option<&str>) -> Entry {
    Entry {
        number,
        at: WallTime(i64::try_from(number).unwrap()),
        by: "CN=mdm \u{1f600}".to_owned(),
        action: "ReportPolicyApplied".to_owned(),
        device: device.map(|d| d.parse().unwrap()),
        subject: "s".to_owned(),
        before: "quarantined".to_owned(),
        after: "released".to_owned(),
        reason: "r".to_owned(),
        request: format!("q-{number}"),
        result: "done".to_owned(),
    }
}

fn requests(list: &[Request]) -> ChangeSet {
    ChangeSet {
        requests: list.to_vec(),
        ..ChangeSet::default()
    }
}

fn audit(numbers: std::ops::RangeInclusive<u64>) -> ChangeSet {
    ChangeSet {
        audit: numbers
            .map(|n| entry(n, Some(["odd", "even"][usize::from(n % 2 == 0)])))
            .collect(),
        ..ChangeSet::default()
    }
}

fn numbers(found: Vec<Sealed>) -> Vec<u64> {
    found.into_iter().map(|s| s.entry.number).collect()
}

#[test]
fn publications_keep_the_order_in_which_they_were_last_published() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let all = ["r1", "r2", "r3"].map(|r| publication(r, 7));
    let mut revision = 0;
    let mut publish = |store: &mut SqliteStore, p: &Publication| {
        let changes = ChangeSet {
            publications: vec![p.clone()],
            ..ChangeSet::default()
        };
        store.commit(&changes, Revision(revision), AT).unwrap();
        revision += 1;
        store.load().unwrap().publications
    };
    publish(&mut store, &all[0]);
    publish(&mut store, &all[1]);
    assert_eq!(publish(&mut store, &all[2]), all);
    let paused = publication("r3", 0);
    assert_eq!(publish(&mut store, &paused), [all[0].clone(), all[1].clone(), paused.clone()]);
    assert_eq!(publish(&mut store, &all[0]), [all[1].clone(), paused, all[0].clone()]);
}

#[test]
fn requests_are_found_by_client_and_id_and_get_their_answer_later() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let first = request("uid:0", "r", 1, None);
    let others = [request("uid:1", "r", 2, Some(b"")), request("uid:0", "r2", 3, Some(b"yes"))];
    store
        .commit(&requests(&[first.clone(), others[0].clone()]), Revision(0), AT)
        .unwrap();
    store.commit(&requests(&others[1..]), Revision(1), AT).unwrap();
    let get = |store: &mut SqliteStore, client: &str, id: &str| store.request(client, &id.parse().unwrap()).unwrap();
    assert_eq!(get(&mut store, "uid:0", "r"), Some(first.clone()));
    assert_eq!(get(&mut store, "uid:1", "r"), Some(others[0].clone()));
    assert_eq!((get(&mut store, "uid:1", "r2"), get(&mut store, "", "r")), (None, None));
    let answered = Request {
        answer: Some(b"done".to_vec()),
        ..first.clone()
    };
    store
        .commit(&requests(std::slice::from_ref(&answered)), Revision(2), AT)
        .unwrap();
    // What comes without an answer takes none away.
    store.commit(&requests(&[first]), Revision(3), AT).unwrap();
    drop(store);
    let mut store = SqliteStore::open(&path).unwrap();
    assert_eq!(get(&mut store, "uid:0", "r"), Some(answered));
    // Used anew after its time.
    let anew = request("uid:0", "r", 9, None);
    store.commit(&requests(std::slice::from_ref(&anew)), Revision(4), AT).unwrap();
    assert_eq!(get(&mut store, "uid:0", "r"), Some(anew));
}

#[test]
fn a_salt_is_kept_with_its_request_and_stays_when_the_answer_comes() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let salted = Request {
        salt: Some(Salt([0; 16])),
        ..request("uid:0", "r", 1, None)
    };
    let answered = Request {
        answer: Some(b"\0done".to_vec()),
        ..salted.clone()
    };
    let get = |store: &mut SqliteStore| store.request("uid:0", &"r".parse().unwrap());
    for (revision, request) in [(0, salted), (1, answered)] {
        store
            .commit(&requests(std::slice::from_ref(&request)), Revision(revision), AT)
            .unwrap();
        drop(store);
        store = SqliteStore::open(&path).unwrap();
        assert_eq!(get(&mut store).unwrap(), Some(request));
    }
    store
        .connection()
        .execute("UPDATE requests SET answer = x'00aabb'", [])
        .unwrap();
    assert!(matches!(get(&mut store), Err(StoreError::Corrupt(_))));
}

#[test]
fn old_requests_are_forgotten_in_parts() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let many: Vec<_> = (0..12_000).map(|n| request("uid:0", &format!("r{n}"), n, None)).collect();
    store.commit(&requests(&many), Revision(0), AT).unwrap();
    let left = |store: &SqliteStore| -> (i64, i64) {
        let text = "SELECT count(*), coalesce(min(at), -1) FROM requests";
        store
            .connection()
            .query_row(text, [], |r| Ok((r.get(0)?, r.get(1)?)))
            .unwrap()
    };
    assert!(!store.prune(WallTime(0), 9).unwrap());
    assert_eq!(left(&store), (12_000, 0));
    let mut calls = 1;
    while store.prune(WallTime(11_000), 9).unwrap() {
        calls += 1;
        assert_eq!(left(&store).1 % 5_000, 0);
    }
    assert_eq!((left(&store), calls), ((1_000, 11_000), 3));
    assert_eq!(store.load().unwrap().revision, Revision(1), "pruning is no commit");
    while store.prune(WallTime(i64::MAX), 9).unwrap() {}
    assert_eq!(left(&store), (1, 11_999), "the last one stays");
    assert_eq!(store.request("uid:0", &"r10500".parse().unwrap()).unwrap(), None);
    assert!(store.request("uid:0", &"r11999".parse().unwrap()).unwrap().is_some());
}

#[test]
fn the_audit_is_a_chain_that_is_found_by_number_and_device() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let mut head = Head::NONE;
    for (revision, changes) in [audit(1..=3), audit(4..=4), ChangeSet::default(), audit(5..=9)]
        .iter()
        .enumerate()
    {
        let done = store.commit(changes, Revision(revision as u64), AT).unwrap();
        assert_eq!(done.audit_head.number, changes.audit.last().map_or(head.number, |e| e.number));
        head = done.audit_head;
    }
    drop(store);
    let mut store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.load().unwrap().audit_head, Some(head));
    let mut verifier = Verifier::new(Head::NONE, vec![head]);
    let all = store.audit(&AuditQuery::After { number: 0, limit: 100 }).unwrap();
    all.iter().for_each(|s| verifier.push(s));
    assert_eq!(verifier.finish(), (head, 9, Vec::new()));
    assert_eq!(all[4].entry, entry(5, Some("odd")));

    let mut ask = |query| numbers(store.audit(&query).unwrap());
    assert_eq!(ask(AuditQuery::Number(7)), [7]);
    assert!(ask(AuditQuery::Number(10)).is_empty());
    assert_eq!(ask(AuditQuery::After { number: 3, limit: 2 }), [4, 5]);
    // Registered in the middle of it, and refused at the end.
    let known = ChangeSet {
        audit: vec![entry(10, Some("odd")), entry(11, None), entry(12, Some("odd"))],
        ..devices(&[device("odd")])
    };
    store.commit(&known, Revision(4), AT).unwrap();
    store.commit(&devices(&[device("odd")]), Revision(5), AT).unwrap();
    let refused = ChangeSet {
        audit: vec![entry(13, Some("odd")), entry(14, Some("even")), entry(15, Some("odd"))],
        ..ChangeSet::default()
    };
    store.commit(&refused, Revision(6), AT).unwrap();
    let mut ask = |query| numbers(store.audit(&query).unwrap());
    let before = |number, device: Option<&str>, limit| AuditQuery::Before {
        number,
        device: device.map(|d| d.parse().unwrap()),
        limit,
    };
    assert_eq!(ask(before(None, None, 3)), [15, 14, 13]);
    assert_eq!(ask(before(Some(7), Some("even"), 2)), [6, 4]);
    assert_eq!(
        ask(before(Some(u64::MAX), Some("odd"), 9)),
        [15, 13, 12, 10],
        "from its registration on"
    );
    assert_eq!(ask(before(Some(13), Some("odd"), 1)), [12]);
    assert!(ask(before(None, Some("nobody"), 9)).is_empty());
}

#[test]
fn a_gap_in_the_audit_is_refused_with_the_whole_change() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let mut changes = audit(1..=2);
    changes.then(audit(4..=4));
    changes.then(devices(&[device("one")]));
    let refused = store.commit(&changes, Revision(0), AT);
    assert!(
        matches!(refused, Err(StoreError::AuditNumber { expected: 3, found: 4 })),
        "{refused:?}"
    );
    let after = store.load().unwrap();
    assert_eq!(
        (after.devices.len(), after.audit_head, after.revision),
        (0, None, Revision(0))
    );
    let twice = store.commit(&audit(2..=2), Revision(0), AT);
    assert!(
        matches!(twice, Err(StoreError::AuditNumber { expected: 1, found: 2 })),
        "{twice:?}"
    );
}

#[test]
fn what_is_pruned_of_the_audit_leaves_its_last_hash_as_anchor() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let head = store.commit(&audit(1..=12_000), Revision(0), AT).unwrap().audit_head;
    let at_7000 = store.audit(&AuditQuery::Number(7_000)).unwrap().remove(0);
    assert!(store.prune(WallTime(0), 5_000).unwrap());
    assert!(!store.prune(WallTime(0), 5_000).unwrap());
    assert!(!store.prune(WallTime(0), 5_000).unwrap());
    let text = "SELECT anchor_number, anchor_hash FROM meta";
    let anchor = store.connection().query_row(text, [], |r| rows::head(r, 0)).unwrap();
    assert_eq!((anchor.number, anchor.hash), (7_000, at_7000.hash));
    let mut verifier = Verifier::new(anchor, vec![head]);
    let all = store
        .audit(&AuditQuery::After {
            number: 0,
            limit: 20_000,
        })
        .unwrap();
    all.iter().for_each(|s| verifier.push(s));
    assert_eq!(verifier.finish(), (head, 5_000, Vec::new()));
    // All of it may go; the chain goes on from its head.
    assert!(!store.prune(WallTime(0), 0).unwrap());
    assert_eq!(store.load().unwrap().audit_head, Some(head));
    store.commit(&audit(12_001..=12_001), Revision(1), AT).unwrap();
    let last = store.audit(&AuditQuery::Number(12_001)).unwrap().remove(0);
    assert_eq!(last.hash, last.entry.hash_after(&head.hash));
}

#[test]
fn the_mark_of_a_restore_stays_until_what_follows_from_it_is_committed() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    store.connection().execute("UPDATE meta SET restored = 5", []).unwrap();
    assert_eq!(store.load().unwrap().restored, Some(WallTime(5)));
    store.commit(&devices(&[device("one")]), Revision(0), AT).unwrap();
    assert_eq!(store.load().unwrap().restored, Some(WallTime(5)));
    let done = ChangeSet {
        restore_done: true,
        ..ChangeSet::default()
    };
    assert!(!done.is_empty());
    store.commit(&done, Revision(1), AT).unwrap();
    assert_eq!(store.load().unwrap().restored, None);
}

#[test]
fn whoever_has_most_requests_loses_his_own_and_nobody_elses() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    store.keep_requests(1000);
    let mut revision = Revision(0);
    let mut ask = |store: &mut SqliteStore, client: &str, numbers: std::ops::Range<i64>, answer: usize| {
        let of = |n: i64| request(client, &format!("r{n}"), n, Some(&vec![b'a'; answer]));
        let all: Vec<_> = numbers.map(of).collect();
        revision = store.commit(&requests(&all), revision, AT).unwrap().revision;
    };
    ask(&mut store, "mdm:few", 0..300, 9);
    ask(&mut store, "vpn:heavy", 0..10, 300 << 10);
    for round in 0..3 {
        ask(&mut store, "mdm:many", round * 6_000..(round + 1) * 6_000, 9);
        ask(&mut store, "mdm:few", 300 + round * 10..310 + round * 10, 9);
        let mut calls = 0;
        while store.prune(WallTime(0), u64::MAX).unwrap() {
            calls += 1;
            assert!(calls < 100, "it comes to an end");
        }
    }
    let check = |store: &mut SqliteStore| {
        let mut get = |client: &str, n: i64| store.request(client, &format!("r{n}").parse().unwrap()).unwrap();
        for n in 0..330 {
            assert_eq!(get("mdm:few", n).unwrap().answer.as_deref(), Some(&[b'a'; 9][..]), "{n}");
        }
        let left = |client, all: std::ops::Range<i64>, get: &mut dyn FnMut(&str, i64) -> Option<Request>| {
            all.filter(|n| get(client, *n).is_some()).collect::<Vec<_>>()
        };
        // An even part of what the others leave: 335, which one heavy answer fills.
        assert_eq!(left("vpn:heavy", 0..10, &mut get), [9]);
        let many = left("mdm:many", 0..18_000, &mut get);
        assert!((300..=400).contains(&many.len()), "{}", many.len());
        assert_eq!(
            (many[0], many[many.len() - 1]),
            (18_000 - many.len() as i64, 17_999),
            "the last ones"
        );
    };
    check(&mut store);
    drop(store);
    let mut store = SqliteStore::open(&path).unwrap();
    check(&mut store);
    // What has moved is as old as it was.
    while store.prune(WallTime(300), u64::MAX).unwrap() {}
    let left: i64 = store
        .connection()
        .query_row("SELECT count(*) FROM requests WHERE at < 300", [], |r| r.get(0))
        .unwrap();
    assert!(left < 330, "those in front of younger ones are gone: {left}");
}

#[test]
fn one_who_makes_many_entries_does_not_take_everyone_elses_with_them() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    // One in a hundred is the operator's.
    let of = |number: u64| Entry {
        by: ["mdm-berlin", "uid:0"][usize::from(number.is_multiple_of(100))].to_owned(),
        ..entry(number, Some("phone"))
    };
    let mut head = Head::NONE;
    for (revision, first) in [1, 6_001, 12_001].into_iter().enumerate() {
        let changes = ChangeSet {
            audit: (first..first + 6_000).map(of).collect(),
            ..ChangeSet::default()
        };
        head = store.commit(&changes, Revision(revision as u64), AT).unwrap().audit_head;
        while store.prune(WallTime(0), 4_000).unwrap() {}
    }
    let get = |store: &mut SqliteStore, number| store.audit(&AuditQuery::Number(number)).unwrap();
    // An eighth of a quarter of 4,000: the last 125 of the 140 that have left the chain.
    for number in [1_600, 9_000, 14_000] {
        assert_eq!(numbers(get(&mut store, number)), [number]);
    }
    assert!(numbers(get(&mut store, 1_500)).is_empty() && numbers(get(&mut store, 13_999)).is_empty());
    for device in [None, Some("phone".parse().unwrap())] {
        let page = |number| AuditQuery::Before {
            number: Some(number),
            device: device.clone(),
            limit: 3,
        };
        assert_eq!(numbers(store.audit(&page(14_002)).unwrap()), [14_001, 14_000, 13_900]);
        assert_eq!(numbers(store.audit(&page(9_001)).unwrap()), [9_000, 8_900, 8_800]);
    }
    let count = |store: &SqliteStore, by: &str| -> i64 {
        let text = "SELECT count(*) FROM audit_aside WHERE by = ?1";
        store.connection().query_row(text, [by], |r| r.get(0)).unwrap()
    };
    assert_eq!((count(&store, "uid:0"), count(&store, "mdm-berlin")), (125, 125));
    // The chain is whole from its anchor on, and export and log go by it alone.
    let anchor = store
        .connection()
        .query_row("SELECT anchor_number, anchor_hash FROM meta", [], |r| rows::head(r, 0))
        .unwrap();
    let after = AuditQuery::After { number: 0, limit: 9_000 };
    let mut verifier = Verifier::new(anchor, vec![head]);
    store.audit(&after).unwrap().iter().for_each(|s| verifier.push(s));
    assert_eq!(verifier.finish(), (head, 4_000, Vec::new()));
}
