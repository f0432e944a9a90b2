"""Tests against real servers. All but those of transformers serve need vLLM; see `processes`."""
