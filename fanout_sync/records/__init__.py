"""Plain data, without behaviour: specs, outcomes, reports, usage, and the records of steps."""
