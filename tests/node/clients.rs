//! Clients that others wrote talk through the node, are throttled, and finish: the sample client of
//! the predictions document under Node.js, and the official `anthropic` Python client.
//!
//! They need `node`, and a virtual environment with `anthropic` (see `openai.rs`). Without them the
//! tests say so; with CI=true or TIDEGATE_REQUIRE_PEERS=1 they fail.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::answers::product;
use crate::support::node::*;
use crate::support::not_tested;
use tidegate::unit::Dimension;
use tidegate::wire::Span;

/// The function is the document's, to the letter.
const SAMPLE: &str = r#"
async function apiRequest(url, options, maxRetries = 3) {
  let retries = 0;
  while (retries < maxRetries) {
    const response = await fetch(url, options);
    if (response.status === 429) {
      const retryAfter = response.headers.get('Retry-After') || 60;
      const delay = Math.min(retryAfter * 1000, Math.pow(2, retries) * 1000);
      console.log(`Rate limited. Retrying in ${delay}ms...`);
      await new Promise(resolve => setTimeout(resolve, delay));
      retries++;
      continue;
    }
    return response;
  }
  throw new Error('Max retries exceeded');
}
(async () => {
  const options = {
    method: 'POST',
    headers: {'authorization': 'Bearer canary-key', 'content-type': 'application/json'},
    body: JSON.stringify({model: 'm', messages: [], max_tokens: 1}),
  };
  let served = 0, last = Infinity;
  while (served < 33) {
    const response = await apiRequest(process.argv[1], options);
    if (response.status !== 200) throw new Error(`status ${response.status}`);
    const header = name => Number(response.headers.get(name));
    if (header('X-RateLimit-Limit') !== 30) throw new Error('X-RateLimit-Limit');
    if (!(header('X-RateLimit-Remaining') < 30)) throw new Error('X-RateLimit-Remaining');
    if (!(header('X-RateLimit-Reset') >= Date.now() / 1000 - 1)) throw new Error('X-RateLimit-Reset');
    if (response.headers.has('Retry-After')) throw new Error('Retry-After on a success');
    await response.arrayBuffer();
    served++;
  }
  console.log(`served ${served}`);
})().catch(error => { console.error(error); process.exit(1); });
"#;

const ANTHROPIC: &str = r#"
import sys, time, datetime, anthropic

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="canary-key", max_retries=0, timeout=10)
ask = dict(model="m", messages=[{"role": "user", "content": "Hello"}], max_tokens=20)

raw = client.messages.with_raw_response.create(**ask)
assert raw.headers["anthropic-ratelimit-requests-limit"] == "30", raw.headers
assert raw.parse().content[0].text == "Hello there", raw.parse()

def refused(call, kind):
    try:
        call()
        raise SystemExit(f"not refused: {kind}")
    except kind as error:
        assert error.body["type"] == "error", error.body
        return error

nobody = anthropic.Anthropic(base_url=sys.argv[1], api_key="nobody", max_retries=0)
error = refused(lambda: nobody.messages.create(**ask), anthropic.AuthenticationError)
assert error.body["error"]["type"] == "authentication_error", error.body
error = refused(lambda: client.messages.create(**{**ask, "model": "none"}), anthropic.NotFoundError)
assert error.body["error"]["type"] == "not_found_error", error.body

for _ in range(100):
    try:
        client.messages.create(**ask)
    except anthropic.RateLimitError as error:
        assert error.body["error"]["type"] == "rate_limit_error", error.body
        headers = error.response.headers
        wait = int(headers["retry-after"])
        assert headers["anthropic-ratelimit-requests-remaining"] == "0", headers
        reset = datetime.datetime.fromisoformat(headers["anthropic-ratelimit-requests-reset"])
        left = (reset - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
        assert 0 < left <= 61, left
        break
else:
    raise SystemExit("never throttled")

began = time.monotonic()
patient = client.with_options(max_retries=3)
retries = 0
for _ in range(3):
    raw = patient.messages.with_raw_response.create(**ask)
    retries += raw.retries_taken
assert retries >= 1, retries
print(f"throttled for {wait} s; three more served after {retries} retries, {time.monotonic() - began:.1f} s")
"#;

/// Whether a test of others' programs is left out, which it says.
pub fn missing(probe: &mut Command, reason: &str) -> bool {
    let there = probe.output().is_ok_and(|probe| probe.status.success());
    if !there {
        not_tested(reason);
    }
    !there
}

/// What the program printed; it bounds its own requests, so it ends.
pub async fn run(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output());
    let output = tokio::time::timeout(Duration::from_secs(60), output).await.unwrap().unwrap().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out.into_owned()
}

/// It comes back sooner than it is told to, up to three times: early retries cost nothing and put
/// nothing off.
#[tokio::test]
async fn s2_15_the_sample_client_of_the_document_is_throttled_and_finishes() {
    if missing(Command::new("node").arg("--version"), "there is no `node`; install nodejs") {
        return;
    }
    let limits = [(Dimension::RequestsPerMinute, key_limit(30))];
    let rig = Rig::start(&product("predictions", Span::Product, &limits)).await;
    let mut client = Command::new("node");
    client.args(["-e", SAMPLE, &format!("http://{}/v1/chat/completions", rig.node.proxy)]);
    let out = run(client).await;
    assert!(out.contains("served 33"), "{out}");
    let throttled = out.matches("Rate limited.").count() as u64;
    println!("the sample client was throttled {throttled} times");
    let report = rig.report();
    assert!(throttled >= 1, "{out}");
    assert_eq!(report.rows[0].refused_limit.requests, throttled);
    assert_eq!((report.rows[0].admitted.requests, rig.upstream.requests()), (33, 33));
}

#[tokio::test]
async fn the_anthropic_client_is_served_told_apart_and_its_own_retries_succeed() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    let reason = "target/venv has no `anthropic`; run: target/venv/bin/pip install anthropic";
    if missing(Command::new(&python).args(["-c", "import anthropic"]), reason) {
        return;
    }
    let limits = [(Dimension::RequestsPerMinute, key_limit(30))];
    let rig = Rig::start(&product("anthropic", Span::Model, &limits)).await;
    let mut client = Command::new(python);
    client.args(["-c", ANTHROPIC, &format!("http://{}", rig.node.proxy)]);
    println!("{}", run(client).await);
    let report = rig.report();
    assert!(report.rows[0].refused_limit.requests >= 2, "{:?}", report.rows[0]);
    assert_eq!(report.rows[0].admitted.requests as usize, rig.upstream.requests());
}
