"""The data, and nothing that acts: specs, outcomes, what is known of a step, its usage and its report."""
