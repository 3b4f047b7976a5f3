//! The official `openai` Python client talks through the node: plain, streamed, throttled.
//!
//! It needs a virtual environment: `python3 -m venv target/venv && target/venv/bin/pip install
//! openai`. Without one the test says so; with CI=true or TIDEGATE_REQUIRE_PEERS=1 it fails.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::node::*;
use crate::support::not_tested;
use tidegate::unit::Dimension;

const SCRIPT: &str = r#"
import sys, time, openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="canary-key", max_retries=0, timeout=10)
ask = dict(model="m", messages=[{"role": "user", "content": "Hello"}], max_tokens=20)

answer = client.chat.completions.create(**ask)
assert answer.choices[0].message.content == "Hello there", answer
assert answer.usage.completion_tokens == 4, answer

text = "".join(
    chunk.choices[0].delta.content or ""
    for chunk in client.chat.completions.create(stream=True, **ask)
)
assert text == "Hi Hi Hi Hi ", text

chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask))
assert chunks[-1].usage.completion_tokens == 4, chunks[-1]

try:
    openai.OpenAI(base_url=sys.argv[1], api_key="nobody", max_retries=0).chat.completions.create(**ask)
    raise SystemExit("an unknown key was served")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key", error

try:
    client.chat.completions.create(**{**ask, "model": "none"})
    raise SystemExit("an unknown model was served")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error

for _ in range(100):
    try:
        client.chat.completions.create(**ask)
    except openai.RateLimitError as error:
        assert error.code == "rate_limit_exceeded", error
        wait = int(error.response.headers["retry-after"])
        break
else:
    raise SystemExit("never throttled")
assert 1 <= wait <= 3, wait

began = time.monotonic()
retrying = client.with_options(max_retries=1)
raw = retrying.chat.completions.with_raw_response.create(**ask)
took = time.monotonic() - began
assert raw.retries_taken == 1, raw.retries_taken
assert raw.parse().choices[0].message.content == "Hello there"
print(f"throttled for {wait} s, its one retry was served after {took:.1f} s")
"#;

#[tokio::test]
async fn the_openai_client_is_served_and_its_own_retry_succeeds() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    let probe = Command::new(&python).args(["-c", "import openai"]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        not_tested(
            "target/venv has no `openai`; run: python3 -m venv target/venv && target/venv/bin/pip install openai",
        );
        return;
    }
    // Two seconds apiece once the minute's worth is used.
    let rig = Rig::start(&table(1, &[(Dimension::RequestsPerMinute, key_limit(30))])).await;
    let base = format!("http://{}/v1", rig.node.proxy);
    // The script bounds its own requests, so the process ends.
    let client = move || Command::new(&python).args(["-c", SCRIPT, &base]).stdin(Stdio::null()).output();
    let client = tokio::task::spawn_blocking(client);
    let output = tokio::time::timeout(Duration::from_secs(60), client).await.unwrap().unwrap().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    println!("{out}");
    let report = rig.report();
    assert_eq!(report.rows[0].refused_limit.requests, 2);
    assert_eq!(report.rows[0].admitted.requests as usize, rig.upstream.requests());
}
