"""What answers: any server that speaks OpenAI's API."""
