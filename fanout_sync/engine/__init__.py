"""The loop that runs steps: its input, the dispatch, pipelines and loops."""
