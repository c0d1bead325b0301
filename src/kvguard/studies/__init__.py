"""What is studied with the other rooms; studies never import one another."""
