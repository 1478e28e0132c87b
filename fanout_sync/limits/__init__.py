"""What makes steps wait: rate limits, budgets, the cooldown after `RetryAfter`, and the line in which steps wait."""
