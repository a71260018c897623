//! The queue against a model of it: whatever is wanted, given up, answered, failed and ended, in any order.
//!
//! The model knows what every span may expect: how many wait for it, how urgently, and in which read it is. It does not
//! know which read comes next, only what any next read must be like.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::runtime::Runtime;

use super::*;
use crate::fetch::tests::{Memory, scene};

/// What may be done to a queue. Numbers choose among what there is, whatever there is.
#[derive(Debug, Clone)]
enum Step {
    Enter {
        place: usize,
        count: usize,
        priority: Priority,
        kept: bool,
    },
    Leave(usize),
    /// Asks for the next read of one of the lines.
    Next(usize),
    /// The task of a read runs.
    Begin(usize),
    Receive {
        read: usize,
        bytes: u64,
    },
    /// Hands over the next span of a read, or an error in its place.
    Deliver {
        read: usize,
        good: bool,
    },
    /// Ends a read, complete or not.
    Land(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let priority =
        prop_oneof![Just(Priority::Demand), Just(Priority::ReadAhead), Just(Priority::Profile), Just(Priority::Fill)];
    let number = any::<usize>;
    let step = prop_oneof![
        4 => (number(), 1..6_usize, priority, any::<bool>())
            .prop_map(|(place, count, priority, kept)| Step::Enter { place, count, priority, kept }),
        3 => number().prop_map(Step::Leave),
        5 => number().prop_map(Step::Next),
        2 => number().prop_map(Step::Begin),
        2 => (number(), 0..600_000_u64).prop_map(|(read, bytes)| Step::Receive { read, bytes }),
        3 => (number(), prop::bool::weighted(0.8)).prop_map(|(read, good)| Step::Deliver { read, good }),
        1 => number().prop_map(Step::Land),
    ];
    prop::collection::vec(step, 1..150)
}

/// A ticket: the span it is for, and where its bytes will come.
type Held = (usize, watch::Receiver<Outcome>);

struct Machine<'a> {
    queue: Queue,
    /// All spans there are: those of a layer are neighbours, in order.
    spans: &'a [(Arc<Layer>, SpanId)],
    runtime: &'a Runtime,
    wants: BTreeMap<usize, Expected>,
    reads: BTreeMap<u64, Flight>,
    tickets: Vec<Held>,
    /// Those whose bytes, or an error, must have come.
    served: Vec<Held>,
}

#[derive(Debug)]
struct Expected {
    /// The line it waits at.
    line: Arc<str>,
    priority: Priority,
    tickets: usize,
    kept: bool,
    read: Option<u64>,
}

#[derive(Debug)]
struct Flight {
    line: Arc<str>,
    /// Not yet delivered.
    left: Vec<usize>,
    outstanding: u64,
    begun: bool,
    task: tokio::task::Id,
}

impl Machine<'_> {
    fn key(&self, span: usize) -> Key {
        Key::asked(&self.spans[span].0, self.spans[span].1)
    }

    fn size(&self, spans: &[usize]) -> u64 {
        let range = |span: usize| self.spans[span].0.index.compressed(self.spans[span].1);
        range(spans[spans.len() - 1]).end - range(spans[0]).start
    }

    fn nth_read(&self, number: usize) -> Option<u64> {
        self.reads.keys().nth(number.checked_rem(self.reads.len())?).copied()
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Enter { place, count, priority, kept } => {
                let start = place % self.spans.len();
                (start..self.spans.len().min(start + count)).for_each(|span| self.enter(span, priority, kept));
            }
            Step::Leave(number) => self.leave(number),
            Step::Next(number) => {
                let lines: BTreeSet<_> = self.spans.iter().map(|(layer, _)| Arc::clone(&layer.place)).collect();
                self.next(lines.iter().nth(number % lines.len()).expect("there are as many"));
            }
            Step::Begin(number) => {
                let Some(id) = self.nth_read(number) else { return };
                self.queue.begun(id);
                self.reads.entry(id).and_modify(|read| read.begun = true);
            }
            Step::Receive { read, bytes } => {
                let Some(id) = self.nth_read(read) else { return };
                self.queue.received(id, bytes);
                self.reads.entry(id).and_modify(|read| read.outstanding -= bytes.min(read.outstanding));
            }
            Step::Deliver { read, good } => self.nth_read(read).into_iter().for_each(|id| self.deliver(id, good)),
            Step::Land(number) => self.nth_read(number).into_iter().for_each(|id| self.land(id)),
        }
    }

    fn enter(&mut self, span: usize, priority: Priority, kept: bool) {
        let (layer, id) = &self.spans[span];
        let outcome = self.queue.enter(layer, *id, priority, kept);
        assert!(outcome.borrow().is_none(), "nothing that was delivered is wanted");
        let line = Arc::clone(&layer.place);
        let want = self.wants.entry(span).or_insert(Expected { line, priority, tickets: 0, kept: false, read: None });
        let nobody = want.tickets == 0 && !want.kept;
        want.priority = if nobody { priority } else { want.priority.min(priority) };
        want.kept |= kept;
        if !kept {
            want.tickets += 1;
            self.tickets.push((span, outcome));
        }
    }

    fn leave(&mut self, number: usize) {
        let Some(place) = number.checked_rem(self.tickets.len()) else { return };
        let (span, _) = self.tickets.swap_remove(place);
        let ended = self.queue.leave(self.key(span)).map(|abort| abort.id());
        let want = self.wants.get_mut(&span).expect("somebody has a ticket for it");
        want.tickets -= 1;
        let (is_wanted, read) = (want.tickets > 0 || want.kept, want.read);
        if !is_wanted && read.is_none() {
            self.wants.remove(&span);
        }
        let is_wanted = |span: &usize| self.wants.get(span).is_some_and(|want| want.tickets > 0 || want.kept);
        let useless = |read: &&Flight| read.begun && !read.left.iter().any(is_wanted);
        let expected = read.and_then(|id| self.reads.get(&id)).filter(useless).map(|read| read.task);
        assert_eq!(ended, expected, "a read is ended if and only if nothing in it is wanted");
    }

    /// Spans that wait at a line, with their urgency.
    fn waiting(&self, line: &Arc<str>) -> impl Iterator<Item = (usize, Priority)> {
        let waits = move |(_, want): &(&usize, &Expected)| want.read.is_none() && want.line == *line;
        self.wants.iter().filter(waits).map(|(span, want)| (*span, want.priority))
    }

    fn next(&mut self, line: &Arc<str>) {
        let urgent = self.waiting(line).map(|(_, priority)| priority).min();
        let product = self.queue.product(line);
        let flights: Vec<_> = self.reads.values().filter(|read| read.line == *line).collect();
        let outstanding: u64 = flights.iter().map(|read| read.outstanding).sum();
        let below = |most| flights.len() < limits::LINE_READS / 2 && outstanding < most;
        // Read-ahead has less room while it is a guess, but for lines that a profile fills.
        let is_full_anyway = self.waiting(line).any(|(_, priority)| priority == Priority::Profile);
        let goes = match urgent {
            None => false,
            Some(Priority::Demand) => flights.len() < limits::LINE_READS,
            Some(Priority::ReadAhead) => below(if is_full_anyway { 2 * product } else { product / 2 }),
            Some(_) => below(2 * product),
        };
        let run = self.queue.next(line);
        assert!(run.is_some() == goes, "{urgent:?} waits, {} reads", flights.len());
        let (Some(run), Some(urgent)) = (run, urgent) else { return };
        let is = |span: usize| self.spans[span].0.index.layer() == run.layer.index.layer();
        let find = |id: &SpanId| (0..self.spans.len()).find(|span| is(*span) && self.spans[*span].1 == *id);
        let spans: Vec<usize> = run.spans.iter().map(|id| find(id).expect("a span of a layer")).collect();
        assert!(spans.windows(2).all(|pair| pair[0] + 1 == pair[1]), "neighbours: {spans:?}");
        let limit = product.max(limits::READ_CHUNK / 2);
        assert!(spans.len() == 1 || self.size(&spans) <= limit, "{} bytes, at most {limit}", self.size(&spans));
        let waits = |span: &usize| self.wants.get(span).filter(|want| want.read.is_none());
        let most = spans.iter().filter_map(waits).filter(|want| want.line == *line).map(|want| want.priority).min();
        assert_eq!(most, Some(urgent), "the most urgent goes first");
        assert!(waits(&spans[0]).is_some() && waits(&spans[spans.len() - 1]).is_some(), "no bridge at an end");
        for (place, span) in spans.iter().enumerate().filter(|(_, span)| waits(span).is_none()) {
            assert!(!self.wants.contains_key(span), "{span} is in another read already");
            assert!(waits(&spans[place - 1]).is_some() && waits(&spans[place + 1]).is_some(), "bridges are single");
            assert!(self.size(&[*span]) <= product / 8, "a bridge is short");
            let range = self.spans[*span].0.index.compressed(self.spans[*span].1);
            assert!(!self.spans[*span].0.blob.missing(range).is_empty(), "a bridge is not here yet");
        }
        self.send(&run, spans, line);
    }

    fn send(&mut self, run: &Run, spans: Vec<usize>, line: &Arc<str>) {
        let task = self.runtime.spawn(std::future::pending::<()>()).abort_handle();
        for span in &spans {
            let bridge = || Expected {
                line: Arc::clone(&run.layer.place),
                priority: Priority::Fill,
                tickets: 0,
                kept: true,
                read: None,
            };
            self.wants.entry(*span).or_insert_with(bridge).read = Some(run.id);
        }
        let (outstanding, line, id) = (self.size(&spans), Arc::clone(line), task.id());
        let flight = Flight { line, left: spans, outstanding, begun: false, task: id };
        assert!(self.reads.insert(run.id, flight).is_none(), "a number of its own");
        self.queue.sent(run.id, task);
    }

    fn deliver(&mut self, id: u64, good: bool) {
        let Some(read) = self.reads.get_mut(&id).filter(|read| !read.left.is_empty()) else { return };
        let span = read.left.remove(0);
        let outcome = if good { Ok(Bytes::from(vec![span as u8])) } else { Err(Error::Interrupted) };
        self.queue.deliver(self.key(span), outcome.clone());
        assert!(self.wants.remove(&span).is_some(), "what is under way is wanted, or was");
        let (got, waiting): (Vec<_>, _) = self.tickets.drain(..).partition(|(ticket, _)| *ticket == span);
        for (_, outcome) in &got {
            match &*outcome.borrow() {
                Some(Ok(bytes)) => assert!(good && bytes[..] == [span as u8]),
                Some(Err(_)) => assert!(!good),
                None => panic!("a ticket for {span} was passed over"),
            }
        }
        self.served.extend(got);
        self.tickets = waiting;
    }

    fn land(&mut self, id: u64) {
        let Some(read) = self.reads.remove(&id) else { return };
        assert_eq!(self.queue.land(id), Some(read.line));
        for span in read.left {
            let want = self.wants.get_mut(&span).expect("what is under way is wanted, or was");
            want.read = None;
            if want.tickets == 0 {
                self.wants.remove(&span);
            }
        }
    }

    /// What holds after every step.
    fn check(&self) {
        assert_eq!(self.queue.outstanding(), self.reads.values().map(|read| read.outstanding).sum::<u64>());
        assert_eq!((self.queue.wants.len(), self.queue.reads.len()), (self.wants.len(), self.reads.len()));
        for (span, want) in &self.wants {
            let real = &self.queue.wants[&self.key(*span)];
            assert_eq!((real.tickets, real.kept, real.read), (want.tickets, want.kept, want.read), "span {span}");
        }
        assert!(self.tickets.iter().all(|(_, outcome)| outcome.borrow().is_none() && outcome.has_changed().is_ok()));
    }

    /// Brings everything that is still wanted; then nothing is left.
    fn finish(mut self) {
        while !self.wants.is_empty() || !self.reads.is_empty() {
            let lines: BTreeSet<_> = self.wants.values().map(|want| Arc::clone(&want.line)).collect();
            for line in lines {
                self.next(&line);
            }
            let id = *self.reads.keys().next().expect("what is wanted is sent when no read is in the way");
            while !self.reads[&id].left.is_empty() {
                self.deliver(id, true);
            }
            self.land(id);
            self.check();
        }
        assert!(self.tickets.is_empty(), "every ticket is served");
        assert!(self.served.iter().all(|(_, outcome)| outcome.borrow().is_some()));
        assert_eq!(self.queue.outstanding(), 0);
        assert!(self.queue.lines.values().all(|line| line.reads == 0));
    }
}

#[test]
fn every_wanted_span_is_brought_once_and_nothing_is_left_behind() {
    // Short spans, of which some are here already, and long ones from elsewhere.
    let (short, long) = (scene(14, 1, Memory::default()), scene(6, 4, Memory::default()));
    let (index, blob) = (long.layer.index.clone(), Arc::clone(&long.layer.blob));
    let elsewhere =
        Arc::new(Layer::new(index, blob, None, "elsewhere", crate::store::Scratch::new(std::env::temp_dir())));
    let layers = [Arc::clone(&short.layer), elsewhere];
    let bytes = short.source.blob();
    for number in [3, 8] {
        let range = short.layer.index.compressed(short.span(number));
        let part = &bytes[range.start as usize..range.end as usize];
        short.layer.blob.write(range.start, part).expect("there is room");
    }
    let spans: Vec<_> =
        layers.iter().flat_map(|layer| layer.index.span_ids().map(|span| (Arc::clone(layer), span))).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let run = |steps: Vec<Step>| {
        let mut machine = Machine {
            queue: Queue::default(),
            spans: &spans,
            runtime: &runtime,
            wants: BTreeMap::new(),
            reads: BTreeMap::new(),
            tickets: Vec::new(),
            served: Vec::new(),
        };
        for step in &steps {
            machine.apply(step);
            machine.check();
        }
        machine.finish();
        Ok(())
    };
    TestRunner::new(ProptestConfig::with_cases(512)).run(&steps(), run).expect("the queue does what the model says");
}

#[test]
fn what_is_wanted_ahead_of_a_layer_that_is_closed_is_not_asked_for() {
    let (closed, open) = (scene(14, 1, Memory::default()), scene(14, 1, Memory::default()));
    let mut queue = Queue::default();
    let place = Arc::clone(&closed.layer.place);
    assert_eq!(place, open.layer.place);
    for number in 0..4 {
        drop(queue.enter(&closed.layer, closed.span(number), Priority::ReadAhead, true));
    }
    drop(closed);
    // What is wanted of the same layer by who has opened it once more is.
    for number in [3, 12] {
        drop(queue.enter(&open.layer, open.span(number), Priority::ReadAhead, true));
    }
    let mut next = || queue.next(&place).map(|run| run.spans);
    assert_eq!([next(), next(), next()], [Some(vec![open.span(3)]), Some(vec![open.span(12)]), None]);
    assert_eq!(queue.wants.len(), 2);
}

#[test]
fn a_neighbour_whose_turn_is_far_off_does_not_come_along() {
    let scene = scene(60, 1, Memory::default());
    let mut queue = Queue::default();
    let place = Arc::clone(&scene.layer.place);
    let size = |span: u32| {
        let range = scene.layer.index.compressed(scene.span(span));
        range.end - range.start
    };
    let pull = PULL * queue.product(&place);
    let mut asked = 0;
    let mut enter = |span: u32| {
        drop(queue.enter(&scene.layer, scene.span(span), Priority::Profile, true));
        asked += size(span);
        asked
    };
    enter(0);
    enter(20);
    enter(21);
    (40..).find(|span| enter(*span) > pull);
    enter(1);
    let mut next = || queue.next(&place).map(|run| run.spans);
    assert_eq!(next(), Some(vec![scene.span(0)]), "its neighbour is wanted, after all others");
    assert_eq!(next(), Some(vec![scene.span(20), scene.span(21)]));
}
