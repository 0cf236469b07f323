"""What a refinement costs, step by step, beside what the machine must pay: ``bpr bench``."""
