"""The engine for clusters: the same algorithm on DeepSpeed and vLLM."""
