//! Files that are no configuration at all.

use super::*;

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    assert!(Config::load(&file).unwrap_err().to_string().contains("cannot be read"));
    assert!(
        Config::load(dir.path())
            .unwrap_err()
            .to_string()
            .contains("not a regular file")
    );
    std::fs::write(&file, b"a = 1\nb = \"\xff\"").unwrap();
    assert!(
        Config::load(&file)
            .unwrap_err()
            .to_string()
            .contains(":2: the text is not UTF-8")
    );
    std::fs::write(&file, vec![b'#'; (4 << 20) + 1]).unwrap();
    assert!(Config::load(&file).unwrap_err().to_string().contains("longer than"));
    std::fs::write(&file, GOOD.text()).unwrap();
    assert!(Config::load(&file).is_ok());
}

/// What cannot be read is refused without a crash, whatever it is.
#[test]
fn cut_and_bent_files_are_no_crash() {
    let text = GOOD.text();
    for end in 0..text.len() {
        let _ = parse(&text[..end]);
        let _ = parse(&text[end..]);
        for c in ["\"", "[", "\n", "\0", "9999999999999999999999", "ä"] {
            let _ = parse(&[&text[..end], c, &text[end..]].concat());
        }
    }
}
