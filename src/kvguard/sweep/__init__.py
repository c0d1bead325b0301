"""Every prompt under every condition: compiled into a plan, made in parts by workers; resumable."""
