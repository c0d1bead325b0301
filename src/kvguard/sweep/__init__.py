"""Every prompt under every condition: plan, parts, workers; resumable."""
