//! Continuous batching: what a replica does with its slots, without a socket or a clock.
//!
//! A step takes what is in the slots, decodes one token of every sequence whose prompt is done
//! and prefills up to a budget of prompt tokens, first come first served. It lasts as long as its
//! work takes at the replica's rate, so a replica with enough to do delivers exactly that rate:
//! the plant knows its own capacity, and nobody else is told. Requests queue once slots are full.

use std::collections::VecDeque;
use std::time::Duration;

use crate::unit::Instant;

/// What one replica can do.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Work a second; a prompt token is 1.
    pub rate: u32,
    /// Sequences served at once.
    pub slots: usize,
    /// Work of one output token.
    pub output_cost: u32,
    /// Prompt tokens of one step, all sequences together.
    pub prefill_per_step: u32,
    /// A step with little to do still takes this long.
    pub step_min: Duration,
    /// Requests that may wait for a slot.
    pub queue_max: usize,
}

pub type SequenceId = u64;

#[derive(Clone, Debug)]
struct Sequence {
    id: SequenceId,
    arrived: Instant,
    prompt: u32,
    prefilled: u32,
    output: u32,
    decoded: u32,
    /// What the step in progress does for it.
    prefilling: u32,
    decoding: bool,
}

/// The step in progress.
#[derive(Clone, Copy, Debug)]
struct Step {
    ends: Instant,
    prompt_tokens: u32,
    output_tokens: u32,
}

/// One replica's sequences, in slots and waiting.
#[derive(Debug)]
pub struct Batch {
    shape: Shape,
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    step: Option<Step>,
}

/// One output token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: SequenceId,
    /// When its step ended, by the plan.
    pub at: Instant,
    pub arrived: Instant,
    pub first: bool,
    pub last: bool,
}

/// What steps delivered.
#[derive(Clone, Debug, Default)]
pub struct Delivered {
    pub tokens: Vec<Token>,
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    /// The furthest that a step's end lay behind `now`.
    pub late: Duration,
}

/// The queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

// === impl Shape ===

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            rate: 8000,
            slots: 32,
            output_cost: 4,
            prefill_per_step: 512,
            step_min: Duration::from_millis(10),
            queue_max: 10_000,
        }
    }
}

impl Shape {
    fn step_length(&self, work: u64) -> Duration {
        let nanos = work.saturating_mul(1_000_000_000) / u64::from(self.rate.max(1));
        Duration::from_nanos(nanos).max(self.step_min)
    }
}

// === impl Batch ===

impl Batch {
    pub fn new(shape: Shape) -> Batch {
        Batch { shape, running: Vec::new(), waiting: VecDeque::new(), step: None }
    }

    /// Takes a request of `prompt` input and `output` output tokens, each at least 1.
    ///
    /// # Errors
    /// [`QueueFull`]; nothing is kept of the request.
    pub fn submit(
        &mut self,
        now: Instant,
        id: SequenceId,
        prompt: u32,
        output: u32,
    ) -> Result<(), QueueFull> {
        if self.waiting.len() >= self.shape.queue_max {
            return Err(QueueFull);
        }
        let (prompt, output) = (prompt.max(1), output.max(1));
        self.waiting.push_back(Sequence {
            id,
            arrived: now,
            prompt,
            prefilled: 0,
            output,
            decoded: 0,
            prefilling: 0,
            decoding: false,
        });
        if self.step.is_none() {
            self.begin(now);
        }
        Ok(())
    }

    /// Forgets a sequence: its client went away. The step in progress keeps its length.
    pub fn abort(&mut self, id: SequenceId) {
        self.running.retain(|sequence| sequence.id != id);
        self.waiting.retain(|sequence| sequence.id != id);
    }

    /// Another shape, from the next step on.
    pub fn reshape(&mut self, shape: Shape) {
        self.shape = shape;
    }

    /// When [`Batch::step`] has something to do; none while idle.
    pub fn next_wake(&self) -> Option<Instant> {
        self.step.map(|step| step.ends)
    }

    /// Ends every step that is due. Steps follow each other without a gap however late the caller
    /// is, so lateness costs latency and never capacity.
    pub fn step(&mut self, now: Instant) -> Delivered {
        let mut delivered = Delivered::default();
        while let Some(step) = self.step.filter(|step| step.ends <= now) {
            delivered.late = delivered.late.max(now.since(step.ends));
            self.finish(step, &mut delivered);
            self.begin(step.ends);
        }
        delivered
    }

    /// Sequences in slots, those included that the next step will put there.
    pub fn running(&self) -> usize {
        self.running.len() + self.waiting.len().min(self.free_slots())
    }

    /// Sequences for which there is no slot.
    pub fn waiting(&self) -> usize {
        self.waiting.len() - self.waiting.len().min(self.free_slots())
    }

    /// Tokens held in the cache by the sequences in slots.
    pub fn cached_tokens(&self) -> u64 {
        self.running.iter().map(|sequence| u64::from(sequence.prefilled + sequence.decoded)).sum()
    }

    fn free_slots(&self) -> usize {
        self.shape.slots.saturating_sub(self.running.len())
    }

    fn begin(&mut self, at: Instant) {
        // A late caller may have submitted after this step should have begun.
        let begins = match self.waiting.front() {
            Some(next) if self.running.is_empty() => at.max(next.arrived),
            _ => at,
        };
        let here = self.waiting.partition_point(|sequence| sequence.arrived <= begins);
        let take = here.min(self.free_slots());
        self.running.extend(self.waiting.drain(..take));
        if self.running.is_empty() {
            self.step = None;
            return;
        }
        let mut prefill_left = self.shape.prefill_per_step.max(1);
        let mut output_tokens = 0;
        for sequence in &mut self.running {
            let missing = sequence.prompt - sequence.prefilled;
            sequence.decoding = missing == 0;
            sequence.prefilling = missing.min(prefill_left);
            prefill_left -= sequence.prefilling;
            output_tokens += u32::from(sequence.decoding);
        }
        let prompt_tokens = self.shape.prefill_per_step.max(1) - prefill_left;
        let work = u64::from(prompt_tokens) + u64::from(output_tokens) * u64::from(self.shape.output_cost);
        let ends = begins + self.shape.step_length(work);
        self.step = Some(Step { ends, prompt_tokens, output_tokens });
    }

    fn finish(&mut self, step: Step, delivered: &mut Delivered) {
        // What an aborted sequence had in the step was computed all the same.
        delivered.prompt_tokens += u64::from(step.prompt_tokens);
        delivered.output_tokens += u64::from(step.output_tokens);
        for sequence in &mut self.running {
            sequence.prefilled += sequence.prefilling;
            sequence.prefilling = 0;
            if sequence.decoding {
                sequence.decoded += 1;
                delivered.tokens.push(Token {
                    id: sequence.id,
                    at: step.ends,
                    arrived: sequence.arrived,
                    first: sequence.decoded == 1,
                    last: sequence.decoded >= sequence.output,
                });
            }
        }
        self.running.retain(|sequence| sequence.decoded < sequence.output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One minute of Poisson-free arrivals every `gap` (200 prompt, 50 output: 400 work each).
    struct Run {
        work: u64,
        waiting_end: usize,
        first_token: Vec<f64>,
        finished: u64,
    }

    fn run(gap: Duration, wake: Duration) -> Run {
        let mut batch = Batch::new(Shape::default());
        let (mut work, mut finished, mut first_token) = (0, 0, Vec::new());
        let (mut now, mut next, mut id) = (Instant::ZERO, Instant::ZERO, 0);
        let end = Instant::ZERO + Duration::from_secs(60);
        while now < end {
            while next <= now {
                id += 1;
                batch.submit(next, id, 200, 50).unwrap();
                next = next + gap;
            }
            let delivered = batch.step(now);
            work += delivered.prompt_tokens + 4 * delivered.output_tokens;
            for token in delivered.tokens {
                finished += u64::from(token.last);
                if token.first {
                    first_token.push(token.at.seconds_since(token.arrived));
                }
            }
            now = now + wake;
        }
        Run { work, waiting_end: batch.waiting(), first_token, finished }
    }

    #[test]
    fn saturated_it_delivers_its_rate_and_the_rest_queues() {
        let over = run(Duration::from_millis(35), Duration::from_millis(1));
        let rate = over.work as f64 / 60.0;
        assert!((rate / 8000.0 - 1.0).abs() < 0.01, "{rate}");
        // 11428 work a second are offered: 3428 too many for a minute are some 500 requests.
        assert!((400..560).contains(&over.waiting_end), "{}", over.waiting_end);
        assert!(over.first_token.last().unwrap() > &10.0);
    }

    #[test]
    fn late_wakes_cost_no_capacity() {
        let over = run(Duration::from_millis(35), Duration::from_millis(150));
        let rate = over.work as f64 / 60.0;
        assert!((rate / 8000.0 - 1.0).abs() < 0.01, "{rate}");
    }

    #[test]
    fn under_its_rate_nothing_waits_and_first_tokens_are_quick() {
        let under = run(Duration::from_millis(62), Duration::from_millis(1));
        assert_eq!(under.waiting_end, 0);
        let worst = under.first_token.iter().copied().fold(0.0, f64::max);
        assert!(worst < 0.2, "{worst}");
        assert!(under.finished > 900, "{}", under.finished);
    }

    #[test]
    fn first_token_comes_one_decode_after_the_prompt() {
        let mut batch = Batch::new(Shape::default());
        batch.submit(Instant::ZERO, 1, 600, 2).unwrap();
        let mut tokens = Vec::new();
        while let Some(wake) = batch.next_wake() {
            tokens.extend(batch.step(wake).tokens);
        }
        // 512 + 88 prompt tokens take 75 ms, each decode alone the shortest step.
        let times: Vec<u128> = tokens.iter().map(|token| token.at.since(Instant::ZERO).as_millis()).collect();
        assert_eq!(times, [85, 95]);
        assert!(tokens[0].first && !tokens[0].last && tokens[1].last);
    }

    #[test]
    fn an_aborted_sequence_frees_its_slot() {
        let mut batch = Batch::new(Shape { slots: 1, ..Shape::default() });
        batch.submit(Instant::ZERO, 1, 10, 1000).unwrap();
        batch.submit(Instant::ZERO, 2, 10, 1).unwrap();
        assert_eq!((batch.running(), batch.waiting()), (1, 1));
        batch.abort(1);
        assert_eq!((batch.running(), batch.waiting()), (1, 0));
        let delivered = batch.step(Instant::ZERO + Duration::from_secs(1));
        assert_eq!(delivered.tokens.iter().map(|token| token.id).collect::<Vec<_>>(), [2]);
        assert_eq!(batch.next_wake(), None);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut batch = Batch::new(Shape { slots: 1, queue_max: 2, ..Shape::default() });
        for id in 0..3 {
            batch.submit(Instant::ZERO, id, 10, 10).unwrap();
        }
        assert_eq!(batch.submit(Instant::ZERO, 3, 10, 10), Err(QueueFull));
    }

    #[test]
    fn an_idle_replica_does_not_work_off_time_that_has_passed() {
        let mut batch = Batch::new(Shape::default());
        batch.submit(Instant::ZERO, 1, 10, 1).unwrap();
        // The caller was away while sequence 1 ended and sequence 2 came.
        let late = Instant::ZERO + Duration::from_millis(500);
        batch.submit(late, 2, 10, 1).unwrap();
        let tokens = batch.step(late + Duration::from_millis(100)).tokens;
        assert_eq!(tokens[1].at.since(late), Duration::from_millis(20));
    }
}
