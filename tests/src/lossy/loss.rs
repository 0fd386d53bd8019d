//! What a loss of power leaves of a disk: what was synchronised, and of the rest what the kind of loss and chance let through.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::disk::{Body, Content, Disk, Names, Node, ROOT, Write, set_on_disk};
use crate::differential::random::Random;

/// What becomes of that which was not synchronised. Blocks are of 512 or 4,096 bytes, by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing of it is there.
    All,
    /// All of it is there up to some moment, and nothing after: the order is kept. A write at that moment is torn between two blocks.
    After,
    /// Names are there up to some moment, in their order; of the contents any blocks, and no others: what a file system does that has a
    /// journal of its own data and none of the files'. A file can have its length and zeros.
    Contents,
    /// Any change of names, any blocks, in no order: the least that POSIX promises.
    Any,
}

/// What was not synchronised, and what of it is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Writes to files, and changes of their length, that were not synchronised.
    pub writes: usize,
    /// Changes of names that were not synchronised.
    pub names: usize,
    /// Of both together, how many are not there, or in part.
    pub gone: usize,
}

impl Loss {
    /// All of them.
    pub const KINDS: [Self; 4] = [Self::All, Self::After, Self::Contents, Self::Any];

    /// One of them.
    pub fn random(random: &mut Random) -> Self {
        random.one_of(&Self::KINDS)
    }

    /// The disk after it, at rest.
    #[must_use]
    pub fn of(self, disk: &Disk, random: &mut Random) -> (Disk, Lost) {
        let mut left = Arrivals::new(self, disk, random);
        let mut nodes = disk.nodes.clone();
        for change in &disk.names {
            if left.name(change) {
                set_on_disk(&mut nodes, change);
            }
        }
        for node in nodes.values_mut() {
            if node.now != node.disk && left.coin() {
                node.disk = node.now;
            }
            if let Body::File { now, disk, pending } = &mut node.body {
                if pending.is_empty() {
                    continue;
                }
                let length = now.len();
                left.contents(Arc::make_mut(disk), length, pending);
            }
        }
        let lost = left.lost;
        (at_rest(nodes, disk.next()), lost)
    }
}

/// What arrives.
struct Arrivals<'a> {
    loss: Loss,
    random: &'a mut Random,
    /// Until when it does, where the order is kept.
    until: u64,
    block: usize,
    lost: Lost,
}

impl<'a> Arrivals<'a> {
    fn new(loss: Loss, disk: &Disk, random: &'a mut Random) -> Self {
        let contents = disk.nodes.values().flat_map(|n| n.pending()).map(|w| w.order);
        let mut orders: Vec<u64> = disk.names.iter().map(|n| n.order).chain(contents).collect();
        orders.sort_unstable();
        orders.push(u64::MAX);
        Self {
            loss,
            until: random.one_of(&orders),
            block: random.one_of(&[512, 4096]),
            random,
            lost: Lost::default(),
        }
    }

    fn coin(&mut self) -> bool {
        self.loss != Loss::All && self.random.once_in(2)
    }

    fn name(&mut self, change: &Names) -> bool {
        let arrives = match self.loss {
            Loss::All => false,
            Loss::After | Loss::Contents => change.order < self.until,
            Loss::Any => self.coin(),
        };
        self.lost.names += 1;
        self.lost.gone += usize::from(!arrives);
        arrives
    }

    /// Brings to the disk what arrives of a file's pending changes. `length` is what they would have made of it.
    fn contents(&mut self, disk: &mut Vec<u8>, length: usize, pending: &mut Vec<Write>) {
        for write in pending.drain(..) {
            self.lost.writes += 1;
            let whole = match self.loss {
                Loss::All => false,
                Loss::After if write.order == self.until => self.torn(disk, &write.what),
                Loss::After => {
                    let arrives = write.order < self.until;
                    if arrives {
                        write.what.apply(disk);
                    }
                    arrives
                }
                Loss::Contents | Loss::Any => self.some(disk, &write.what),
            };
            self.lost.gone += usize::from(!whole);
        }
        // The length can arrive without what was written.
        if matches!(self.loss, Loss::Contents | Loss::Any) && disk.len() < length && self.random.once_in(2) {
            disk.resize(length, 0);
        }
    }

    /// The beginning, up to a block's end.
    fn torn(&mut self, disk: &mut Vec<u8>, what: &Content) -> bool {
        if let Content::Bytes(at, bytes) = what {
            let blocks = blocks(*at, bytes, self.block);
            let some = self.random.below(blocks.len().max(1));
            blocks.iter().take(some).for_each(|b| b.apply(disk));
        }
        false
    }

    /// Any blocks; of half of all writes all, so that some things do arrive.
    fn some(&mut self, disk: &mut Vec<u8>, what: &Content) -> bool {
        let all = self.random.once_in(2);
        let blocks = match what {
            Content::Length(_) => vec![what.clone()],
            Content::Bytes(at, bytes) => blocks(*at, bytes, self.block),
        };
        let mut whole = true;
        for block in blocks {
            if all || self.random.once_in(2) {
                block.apply(disk);
            } else {
                whole = false;
            }
        }
        whole
    }
}

impl Node {
    fn pending(&self) -> &[Write] {
        match &self.body {
            Body::File { pending, .. } => pending,
            Body::Directory { .. } => &[],
        }
    }
}

/// A write, cut where blocks of the file begin.
fn blocks(at: u64, bytes: &[u8], block: usize) -> Vec<Content> {
    let mut all = Vec::new();
    let (mut at, mut rest) = (at, bytes);
    while !rest.is_empty() {
        let room = block - usize::try_from(at % block as u64).unwrap_or(0);
        let (first, others) = rest.split_at(room.min(rest.len()));
        all.push(Content::Bytes(at, first.into()));
        (at, rest) = (at + first.len() as u64, others);
    }
    all
}

/// Only what is on the disk, and of that only what a name leads to.
fn at_rest(mut nodes: BTreeMap<u64, Node>, next: u64) -> Disk {
    let mut reached = BTreeSet::new();
    let mut look = vec![ROOT];
    while let Some(number) = look.pop() {
        let Some(node) = nodes.get_mut(&number).filter(|_| reached.insert(number)) else {
            continue;
        };
        node.now = node.disk;
        match &mut node.body {
            Body::File { now, disk, .. } => now.clone_from(disk),
            Body::Directory { now, disk } => {
                now.clone_from(disk);
                look.extend(now.values());
            }
        }
    }
    nodes.retain(|number, _| reached.contains(number));
    Disk::of(nodes, next)
}
