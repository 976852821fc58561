"""Commands about a pretraining: begin it or go on, and look again at one of its steps."""
