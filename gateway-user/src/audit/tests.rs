//! The chain: what it tells from what, and what it finds.

use super::*;

fn entry(number: u64) -> Entry {
    Entry {
        number,
        at: WallTime(1_800_000_000_000 + i64::try_from(number).unwrap()),
        by: "CN=mdm,serial=01".to_owned(),
        action: "ReportPolicyApplied".to_owned(),
        device: Some(format!("phone-{number}").parse().unwrap()),
        subject: String::new(),
        before: "quarantined".to_owned(),
        after: "released".to_owned(),
        reason: "policy_applied".to_owned(),
        request: format!("r-{number}"),
        result: "done".to_owned(),
    }
}

fn chain(anchor: Head, entries: impl IntoIterator<Item = Entry>) -> Vec<Sealed> {
    let mut last = anchor.hash;
    let seal = |entry: Entry| {
        last = entry.hash_after(&last);
        Sealed { entry, hash: last }
    };
    entries.into_iter().map(seal).collect()
}

fn head(of: &Sealed) -> Head {
    Head {
        number: of.entry.number,
        hash: of.hash,
    }
}

fn found(anchor: Head, chain: &[Sealed], known: &[Head]) -> Vec<(u64, Flaw)> {
    let mut verifier = Verifier::new(anchor, known.to_vec());
    chain.iter().for_each(|s| verifier.push(s));
    let (last, entries, findings) = verifier.finish();
    assert_eq!(
        last.number,
        chain.iter().map(|s| s.entry.number).max().unwrap_or(anchor.number)
    );
    assert_eq!(entries, chain.len() as u64);
    findings.into_iter().map(|f| (f.number, f.flaw)).collect()
}

/// The encoding is public: what was exported is verified with other tools, years later.
#[test]
fn the_hash_of_an_entry_never_changes() {
    let sealed = chain(
        Head::NONE,
        [
            entry(1),
            Entry {
                device: None,
                ..entry(2)
            },
        ],
    );
    assert_eq!(
        [head(&sealed[0]).to_string(), head(&sealed[1]).to_string()],
        [
            "1:8832942dbdb601d2b309bc2ce7cba5acfa726c9c88c10de29844e2630b638876",
            "2:8b69b835c2cb5646c1323b75aaf47f263f7b402658a5d8615a101d37a607104b"
        ]
    );
}

#[test]
fn every_field_counts_and_none_runs_into_the_next() {
    let whole = entry(7);
    let other = |change: &dyn Fn(&mut Entry)| {
        let mut e = whole.clone();
        change(&mut e);
        e.hash_after(&[0; 32])
    };
    let mut seen = vec![
        whole.hash_after(&[0; 32]),
        whole.hash_after(&[1; 32]),
        other(&|e| e.number = 8),
        other(&|e| e.at.0 = 0),
        other(&|e| e.by.push('x')),
        other(&|e| e.action.push('x')),
        other(&|e| e.device = None),
        other(&|e| e.device = Some("phone-77".parse().unwrap())),
        other(&|e| e.subject.push('x')),
        other(&|e| e.before.push('x')),
        other(&|e| e.after.push('x')),
        other(&|e| e.reason.push('x')),
        other(&|e| e.request.push('x')),
        other(&|e| e.result.push('x')),
        // The same letters, cut elsewhere.
        other(&|e| {
            e.before = "quarantinedr".to_owned();
            e.after = "eleased".to_owned();
        }),
    ];
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count);
}

#[test]
fn a_whole_chain_has_no_flaw_and_gives_its_head() {
    let all = chain(Head::NONE, (1..=9).map(entry));
    assert_eq!(found(Head::NONE, &all, &[]), []);
    assert_eq!(found(Head::NONE, &[], &[]), []);
    assert_eq!(found(Head::NONE, &all, &[head(&all[3]), head(&all[8])]), []);
    // Pruned: the anchor takes the place of what is gone.
    let anchor = head(&all[4]);
    assert_eq!(found(anchor, &all[5..], &[head(&all[4]), head(&all[8])]), []);
}

#[test]
fn each_kind_of_forgery_is_found_at_its_place() {
    let all = chain(Head::NONE, (1..=9).map(entry));
    let last = head(&all[8]);

    let mut edited = all.clone();
    edited[3].entry.after = "blocked".to_owned();
    assert_eq!(found(Head::NONE, &edited, &[]), [(4, Flaw::Edited)]);

    let mut rehashed = edited.clone();
    rehashed[3].hash = rehashed[3].entry.hash_after(&all[2].hash);
    assert_eq!(found(Head::NONE, &rehashed, &[]), [(5, Flaw::Edited)]);

    let mut removed = all.clone();
    removed.drain(3..5);
    assert_eq!(found(Head::NONE, &removed, &[]), [(6, Flaw::Missing { from: 4 })]);

    // Contents change places under their numbers; entries change places.
    let mut swapped = all.clone();
    swapped.swap(2, 5);
    swapped[2].entry.number = 3;
    swapped[5].entry.number = 6;
    let flaws: Vec<u64> = found(Head::NONE, &swapped, &[]).iter().map(|f| f.0).collect();
    assert_eq!(flaws, [3, 4, 6, 7]);
    let mut moved = all.clone();
    moved.swap(2, 3);
    assert_eq!(
        found(Head::NONE, &moved, &[]),
        [(4, Flaw::Missing { from: 3 }), (3, Flaw::OutOfOrder { after: 4 })]
    );

    assert_eq!(found(Head::NONE, &all[..7], &[]), [], "nothing in it says that it was longer");
    assert_eq!(found(Head::NONE, &all[..7], &[last]), [(7, Flaw::CutOff { reached: 9 })]);
    assert_eq!(found(Head::NONE, &[], &[last]), [(0, Flaw::CutOff { reached: 9 })]);

    // Written anew from 4 on, every hash right, and longer than before.
    let forged = (1..=12).map(|n| Entry {
        by: if n == 4 { "nobody".to_owned() } else { entry(n).by },
        ..entry(n)
    });
    let forged = chain(Head::NONE, forged);
    assert_eq!(found(Head::NONE, &forged, &[]), []);
    assert_eq!(found(Head::NONE, &forged, &[head(&all[2]), last]), [(9, Flaw::Replaced)]);

    // The front is gone, and the anchor says otherwise.
    assert_eq!(found(Head::NONE, &all[2..], &[]), [(3, Flaw::Missing { from: 1 })]);
    let lie = Head {
        number: 2,
        hash: [9; 32],
    };
    assert_eq!(found(lie, &all[2..], &[]), [(3, Flaw::Edited)]);
    assert_eq!(found(head(&all[4]), &all[5..], &[head(&all[1])]), [(2, Flaw::Pruned)]);
    let other = Head {
        number: 5,
        hash: [9; 32],
    };
    assert_eq!(found(head(&all[4]), &all[5..], &[other]), [(5, Flaw::Replaced)]);
}

#[test]
fn a_part_of_a_chain_is_held_to_itself_and_to_what_is_known() {
    let all = chain(Head::NONE, (1..=9).map(entry));
    let verify = |part: &[Sealed], known: &[Head]| {
        let mut verifier = Verifier::of_part(known.to_vec());
        part.iter().for_each(|s| verifier.push(s));
        verifier
            .finish()
            .2
            .into_iter()
            .map(|f| (f.number, f.flaw))
            .collect::<Vec<_>>()
    };
    assert_eq!(verify(&all[3..], &[head(&all[5]), head(&all[8])]), []);
    assert_eq!(verify(&[], &[]), []);
    let mut edited = all[3..].to_vec();
    edited[2].entry.by.push('x');
    assert_eq!(verify(&edited, &[]), [(6, Flaw::Edited)]);
    assert_eq!(verify(&all[3..6], &[head(&all[8])]), [(6, Flaw::CutOff { reached: 9 })]);
    assert_eq!(verify(&all[3..], &[head(&all[1])]), [(2, Flaw::Pruned)]);
}

#[test]
fn a_line_holds_all_of_an_entry_under_stable_names() {
    let sealed = chain(Head::NONE, [entry(1)]).remove(0);
    let text = serde_json::to_string(&Line::from(sealed.clone())).unwrap();
    let expected = concat!(
        r#"{"number":1,"at_ms":1800000000001,"at":"2027-01-15T08:00:00.001Z","by":"CN=mdm,serial=01","action":"ReportPolicyApplied","#,
        r#""device":"phone-1","subject":"","before":"quarantined","after":"released","reason":"policy_applied","request":"r-1","#,
        r#""result":"done","hash":"8832942dbdb601d2b309bc2ce7cba5acfa726c9c88c10de29844e2630b638876"}"#
    );
    assert_eq!(text, expected);
    assert_eq!(Sealed::from(serde_json::from_str::<Line>(&text).unwrap()), sealed);
    for far in [i64::MIN, -1, i64::MAX, 253_402_300_800_000] {
        assert_eq!(rfc3339(WallTime(far)), format!("{far} ms"));
    }
    assert_eq!(rfc3339(WallTime(253_402_300_799_999)), "9999-12-31T23:59:59.999Z");
}

#[test]
fn a_head_is_read_as_it_is_written() {
    let head = Head {
        number: 1234,
        hash: [0xa5; 32],
    };
    assert_eq!(head.to_string().parse(), Ok(head));
    for bad in [
        "",
        "1",
        "1:",
        ":aa",
        "1:zz",
        "-1:00",
        &format!("1:{}", "é".repeat(32)),
        &format!("x:{}", "0".repeat(64)),
    ] {
        assert_eq!(bad.parse::<Head>(), Err(InvalidHead), "{bad}");
    }
}
