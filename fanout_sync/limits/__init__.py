"""What holds steps back: rate limits, budgets, the cooldown after `RetryAfter`, the waiting line."""
