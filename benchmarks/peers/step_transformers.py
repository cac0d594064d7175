"""The Llama of transformers in the same shape; its "layer" is gradient_checkpointing_enable()."""

import torch
from steps import Loss, Shape, Variant, main


def by(is_checkpointed: bool) -> Variant:
    """With or without gradient checkpointing."""

    def make(shape: Shape, device: torch.device) -> Loss:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["dim"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv_heads"],
            head_dim=shape["head_dim"],
            intermediate_size=shape["ffn_dim"],
            max_position_embeddings=1 << 20,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            use_cache=False,
        )
        model = LlamaForCausalLM(config).to(device).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable()

        def loss_of(ids: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = model(input_ids=ids[None], labels=ids[None]).loss
            return loss

        return loss_of

    return make


if __name__ == "__main__":
    main("transformers", {"plain": by(False), "layer": by(True)})
