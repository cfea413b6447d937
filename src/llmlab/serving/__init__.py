"""A model served over HTTP, as OpenAI's clients expect it: one worker thread, many callers, a key on every route."""
