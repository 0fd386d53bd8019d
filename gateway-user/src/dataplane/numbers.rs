//! The numbers of rules: which one a rule had before, which one a new rule gets. Pure. A number is a counter's name: as long as nothing of
//! a rule changes it keeps its number, over restarts and other changes of the policy; a number that was another rule's a moment ago is not given out.

use std::collections::HashMap;

use gateway_ebpf::abi::MAX_RULES;

use super::policy::CompileError;
use crate::config::{Allow, Config, Policy, Protocol, Rule, RuleDirection};

/// Digests by rule number; 0: free. Number 0 is no rule's.
pub(super) type Digests = [u64; MAX_RULES];

/// Who has which number.
pub(super) struct Numbers {
    /// While the old policy may still be in force: what it and the new one need.
    pub(super) both: Box<Digests>,
    /// Afterwards.
    pub(super) after: Box<Digests>,
    /// Numbers of rules that were not there before, ascending.
    pub(super) fresh: Vec<u16>,
}

/// Gives each rule of the configuration its number: the one that `held` has for it, else the lowest free one.
///
/// # Errors
/// There are too few free ones beside those that `held` needs.
pub(super) fn assign(config: &mut Config, held: &Digests) -> Result<Numbers, CompileError> {
    // 0 is no number to find or to give.
    let held_by: HashMap<u64, u16> = (1_u16..)
        .zip(&held[1..])
        .filter(|(_, d)| **d != 0)
        .map(|(n, d)| (*d, n))
        .collect();
    let mut free = (1_u16..).zip(&held[1..]).filter(|(_, d)| **d == 0).map(|(n, _)| n);
    let (mut both, mut after) = (Box::new(*held), Box::new([0; MAX_RULES]));
    both[0] = 0;
    let mut fresh = Vec::new();
    for policy in &mut config.policies {
        let mut twins: HashMap<u64, u32> = HashMap::new();
        let name = policy.name.to_string();
        let Allow::Rules(rules) = &mut policy.allow else { continue };
        for rule in rules {
            let content = digest(&format!("{name}\n{}", text(rule)));
            let twin = twins.entry(content).or_default();
            let digest = digest(&format!("{content} {twin}"));
            *twin += 1;
            let number = match held_by.get(&digest) {
                Some(n) => *n,
                None => {
                    let number = free.next().ok_or(CompileError::Limit {
                        what: "rules",
                        limit: "MAX_RULES",
                        most: MAX_RULES - 1,
                    })?;
                    fresh.push(number);
                    number
                }
            };
            rule.id = number;
            both[usize::from(number)] = digest;
            after[usize::from(number)] = digest;
        }
    }
    Ok(Numbers { both, after, fresh })
}

/// Number 0, what `all` passes, and those of the rules, ascending.
pub(super) fn all(config: &Config) -> Vec<u16> {
    let of = |p: &Policy| match &p.allow {
        Allow::Rules(rules) => rules.iter().map(|r| r.id).collect(),
        Allow::All | Allow::Nothing => Vec::new(),
    };
    let mut all: Vec<u16> = config.policies.iter().flat_map(of).chain([0]).collect();
    all.sort_unstable();
    all
}

/// The same from build to build; the order of prefixes and ports means nothing.
fn text(rule: &Rule) -> String {
    let direction = match rule.direction {
        RuleDirection::FromDevice => "to",
        RuleDirection::ToDevice => "from",
    };
    let protocol = match rule.protocol {
        Protocol::Any => "any".to_owned(),
        Protocol::Tcp => "tcp".to_owned(),
        Protocol::Udp => "udp".to_owned(),
        Protocol::Icmp => "icmp".to_owned(),
        Protocol::Number(n) => n.to_string(),
    };
    let mut peers: Vec<String> = rule.peers.iter().map(ToString::to_string).collect();
    peers.sort();
    let mut ports: Vec<(u16, u16)> = rule.ports.iter().map(|r| (*r.start(), *r.end())).collect();
    ports.sort_unstable();
    let ports: Vec<String> = ports.into_iter().map(|(first, last)| format!("{first}-{last}")).collect();
    format!("{direction} {} {protocol} {}", peers.join(","), ports.join(","))
}

/// Not 0.
fn digest(text: &str) -> u64 {
    super::layout::fnv(text).max(1)
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures, *};

    fn ids(config: &Config) -> Vec<u16> {
        all(config)[1..].to_vec()
    }
    fn rules(config: &mut Config) -> &mut Vec<Rule> {
        match &mut config.policies[0].allow {
            Allow::Rules(rules) => rules,
            _ => panic!("rules"),
        }
    }

    #[test]
    fn the_first_time_they_are_in_the_order_of_the_file() {
        let mut config = fixtures::config();
        let numbers = assign(&mut config, &[0; MAX_RULES]).unwrap();
        assert_eq!((ids(&config), numbers.fresh), (vec![1, 2, 3], vec![1, 2, 3]));
        assert_eq!(numbers.both, numbers.after);
        assert_eq!(numbers.after.iter().filter(|d| **d != 0).count(), 3);
    }

    #[test]
    fn a_rule_keeps_its_number_and_a_removed_ones_is_free_only_afterwards() {
        let mut config = fixtures::config();
        let first = assign(&mut config, &[0; MAX_RULES]).unwrap();
        // The first goes, one comes in front, the order of prefixes changes.
        let mut new = fixtures::config();
        let mut added = rules(&mut new)[0].clone();
        added.ports = vec![8443..=8443];
        rules(&mut new)[0] = added;
        rules(&mut new).swap(1, 2);
        let second = assign(&mut new, &first.after).unwrap();
        let by_place: Vec<u16> = rules(&mut new).iter().map(|r| r.id).collect();
        assert_eq!(by_place, [4, 3, 2], "the number of the one that went is not given out yet");
        assert_eq!(second.fresh, [4]);
        assert_eq!(second.both[1], first.after[1]);
        assert_eq!(second.after[1], 0);
        // Now it is.
        let mut third = fixtures::config();
        assert_eq!(assign(&mut third, &second.after).unwrap().fresh, [1]);
    }

    #[test]
    fn equal_rules_have_numbers_of_their_own_also_in_two_policies() {
        let mut config = fixtures::config();
        let rule = rules(&mut config)[0].clone();
        rules(&mut config).push(rule.clone());
        config.policies[1].allow = Allow::Rules(vec![rule]);
        let numbers = assign(&mut config, &[0; MAX_RULES]).unwrap();
        assert_eq!(ids(&config), [1, 2, 3, 4, 5]);
        let again = assign(&mut config, &numbers.after).unwrap();
        assert_eq!((ids(&config), again.fresh), (vec![1, 2, 3, 4, 5], vec![]));
    }

    #[test]
    fn more_than_there_are_numbers_for_is_named() {
        let mut config = fixtures::config();
        let mut held = [0; MAX_RULES];
        held[1..MAX_RULES - 2].fill(7);
        let e = assign(&mut config, &held).err().unwrap();
        assert!(e.to_string().contains("MAX_RULES"), "{e}");
    }
}
