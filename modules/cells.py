"""One step of a GRU and of an LSTM, and its gradient, with the equations and the order of gates of torch.nn.

The caller computes the products of the weights with the input and with the state.  On a GPU a step is one kernel,
and so is its gradient: those of torch.nn.GRUCell and torch.nn.LSTMCell.
"""

import torch

aten = torch.ops.aten


class GRUCell:
    """state is (h,), gates are (n, 3H): reset, update, new."""

    @staticmethod
    def forward(inputs, recurrent, state):
        """Products with the input and with h, both (n, 3H), state -> (state after the step, what `backward` needs)."""
        if inputs.device.type == "cuda":
            hidden, workspace = aten._thnn_fused_gru_cell(inputs, recurrent, state[0])
            return (hidden,), (workspace,)
        reset_i, update_i, new_i = inputs.chunk(3, dim=-1)
        reset_h, update_h, new_h = recurrent.chunk(3, dim=-1)
        reset, update = torch.sigmoid(reset_i + reset_h), torch.sigmoid(update_i + update_h)
        new = torch.tanh(new_i + reset * new_h)
        return (torch.lerp(new, state[0], update),), (reset, update, new, new_h, state[0])

    @staticmethod
    def backward(saved, grads):
        """Gradient of the state after the step -> gradients of inputs, of recurrent and of the state before.

        That of the state leaves out the way through `recurrent`, which the caller adds.
        """
        if grads[0].device.type == "cuda":
            inputs, recurrent, before, _, _ = aten._thnn_fused_gru_cell_backward(grads[0], saved[0], False)
            return inputs, recurrent, (before,)
        (grad,), (reset, update, new, new_h, before) = grads, saved
        d_new = grad * (1 - update) * (1 - new * new)
        d_update = grad * (before - new) * update * (1 - update)
        d_reset = d_new * new_h * reset * (1 - reset)
        inputs = torch.cat([d_reset, d_update, d_new], -1)
        return inputs, torch.cat([d_reset, d_update, d_new * reset], -1), (grad * update,)


class LSTMCell:
    """state is (h, c), gates are (n, 4H): input, forget, cell, output."""

    @staticmethod
    def forward(inputs, recurrent, state):
        """As GRUCell's, with products (n, 4H)."""
        if inputs.device.type == "cuda":
            hidden, cell, workspace = aten._thnn_fused_lstm_cell(inputs, recurrent, state[1])
            return (hidden, cell), (workspace, state[1], cell)
        enter, forget, new, out = (inputs + recurrent).chunk(4, dim=-1)
        enter, forget, new, out = enter.sigmoid(), forget.sigmoid(), new.tanh(), out.sigmoid()
        cell = forget * state[1] + enter * new
        level = cell.tanh()
        return (out * level, cell), (enter, forget, new, out, level, state[1])

    @staticmethod
    def backward(saved, grads):
        """As GRUCell's; h acts through `recurrent` only, so None stands for its gradient."""
        if grads[0].device.type == "cuda":
            workspace, before, after = saved
            gates, d_before, _ = aten._thnn_fused_lstm_cell_backward_impl(*grads, before, after, workspace, False)
            return gates, gates, (None, d_before)
        enter, forget, new, out, level, before = saved
        d_cell = grads[1] + grads[0] * out * (1 - level * level)
        parts = [
            d_cell * new * enter * (1 - enter),
            d_cell * before * forget * (1 - forget),
            d_cell * enter * (1 - new * new),
            grads[0] * level * out * (1 - out),
        ]
        gates = torch.cat(parts, -1)
        return gates, gates, (None, d_cell * forget)
