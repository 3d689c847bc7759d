"""Who takes part in `bench_colearning`, each a script of its own that prints one JSON object and ends."""
