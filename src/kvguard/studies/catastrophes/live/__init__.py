"""The live guard against what it is to beat, on prompts that no other stage has seen."""
