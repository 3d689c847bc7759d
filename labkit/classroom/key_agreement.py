"""Key agreement: a client's masks, from keys that it shares with each other client and the board cannot compute.

Bonawitz et al. 2017, doi:10.1145/3133956.3133982, for a board that keeps to the protocol and looks at all it receives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.classroom.notes import VOTERS
from labkit.errors import ExchangeError

_WORD = np.dtype("<u8")  # as the stream's bytes are read on every machine


class RoundKey:
    """The key pair of one client for one round: yᵢ = xᵢ + Σ_{j>i} PRG(s_ij) − Σ_{j<i} PRG(s_ij) mod 2⁶⁴ (Sec. 4.1).

    s_ij = HKDF-SHA256 of the X25519 secret of i and j, with round, clients and public keys as info; PRG is ChaCha20.
    The board relays the public keys. Key pairs are made anew for every round, so of a round that closed without one of
    its clients nothing is ever revealed: it is void, and the next one is masked among those who are left. That takes
    the place of the paper's secret shares and second masks, which save the round.

    What the board learns is the sum over those present, and of a few sums with different clients what they tell
    together. Clients who side with the board take their own part out of the sum. Nothing here protects from a board
    that lies: that hands out public keys of its own in place of the clients', which nobody has signed, or tells clients
    of others who are not there.
    """

    def __init__(self, client: int, number: int) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self.client, self.number, self._private = client, number, X25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes_raw().hex()

    def masked(self, numbers: NDArray[np.int64], keys: Mapping[int, str]) -> NDArray[np.int64]:
        """Numbers [P] with this client's masks among the clients whose public `keys` these are, its own one included.

        Raises ExchangeError where these are too few to hide among, where its own key is another, or one is no key.
        """
        if len(keys) < VOTERS:
            raise ExchangeError(f"masks hide nobody among fewer than {VOTERS}: nothing was sent.")
        if keys.get(self.client) != self.public:
            raise ExchangeError(f"the board does not relay the key of client {self.client}: nothing was sent.")
        total = numbers.astype(np.int64).view(np.uint64)
        for other in keys.keys() - {self.client}:
            stream = self._stream(other, keys[other], len(total))
            total = total + stream if other > self.client else total - stream  # 64-bit addition wraps
        return total.view(np.int64)

    def _stream(self, other: int, key: str, size: int) -> NDArray[np.uint64]:
        """PRG(s_ij) [size], the same from either end."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        pair = sorted([(self.client, self.public), (other, key)])
        info = f"labkit masks, round {self.number}, {pair}".encode()
        seed = HKDF(SHA256(), 32, None, info).derive(_secret(self._private, key))
        drawn = Cipher(algorithms.ChaCha20(seed, bytes(16)), None).encryptor().update(bytes(size * _WORD.itemsize))
        return np.frombuffer(drawn, _WORD).astype(np.uint64)


def require_key(key: Any) -> str:
    """This public key, if it is one that secrets can be made with. Raises ExchangeError for anything else."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    _secret(X25519PrivateKey.generate(), key)
    return str(key)


def _secret(private: Any, key: Any) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    try:
        secret: bytes = private.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(key)))
    except (TypeError, ValueError):  # also for points with which every secret is the same
        raise ExchangeError("A public key is 32 bytes of X25519 in hexadecimal, and this is none.") from None
    return secret
