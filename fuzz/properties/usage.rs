//! Usage reports, one a line; an empty line is a tick of the controller they are sent to.

use tidegate::observe::Round;
use tidegate::publish::inbox::Inbox;
use tidegate::wire::UsageReport;

use super::loops::Loop;

const LINES_MAX: usize = 16;

pub fn check(data: &[u8]) {
    let mut control = Loop::small();
    let inbox = Inbox::default();
    for line in data.split(|byte| *byte == b'\n').take(LINES_MAX) {
        if line.is_empty() {
            tick(&mut control, &inbox);
            continue;
        }
        let Ok(report) = UsageReport::decode(line) else { continue };
        let encoded = serde_json::to_vec(&report).expect("what was decoded can be encoded");
        assert_eq!(UsageReport::decode(&encoded).expect("and decoded again"), report);
        let _ = inbox.offer(report, line.len());
    }
    tick(&mut control, &inbox);
}

fn tick(control: &mut Loop, inbox: &Inbox) {
    control.tick(&Round { usage: inbox.drain(), ..Round::default() });
}
