"""Ask a model every line of prompts.txt. Run it again after it was stopped: it goes on where it was."""

from pathlib import Path

from openai import OpenAI, RateLimitError

from fanout_sync import Retry, RetryAfter, fanout_map, write_outcomes

client = OpenAI(max_retries=0)


def ask(prompt: str) -> str | None:
    try:
        answer = client.chat.completions.create(model="imitation", messages=[{"role": "user", "content": prompt}])
    except RateLimitError as error:
        raise RetryAfter(float(error.response.headers["retry-after"])) from error
    return answer.choices[0].message.content


prompts = Path("prompts.txt").read_text().splitlines()
retry = Retry(5, on_timeout=True)
run = fanout_map(ask, prompts, max_concurrency=16, timeout=5, retry=retry, journal="answers.db")
write_outcomes("answers.jsonl", run)
print(run.summary())
