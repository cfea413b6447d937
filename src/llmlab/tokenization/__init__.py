"""Text to ids and back, tokenizers of our own, and chats as one sequence of ids."""
