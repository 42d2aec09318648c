"""What a critic is made of: a language model, its head, LoRA, and how both are saved."""
