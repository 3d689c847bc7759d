"""Tasks: computation as pure arithmetic: split (𝒯 = ∪ 𝒯ᵢ), schedule (𝒮 = ∪ 𝒮ᵢ), synchronise (𝒯_sync = ∩ 𝒯ᵢ)."""
