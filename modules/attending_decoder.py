"""VSRN's decoder over given words (teacher forcing), with its gradient written out.

docs/method.md, section 3.4.  Autograd would compute each weight's gradient step by step; here it is one product over
all words.  Letters for shapes: B captions, R regions, H hidden width, G gates (3 of a GRU, 4 of an LSTM), N words of
all captions, n captions that have a word at the present step.
"""

import torch


def attend(query, memory, keys, energy_weight, out=None):
    """Query (n, H), memory and keys (n, R, H) -> attention weights (n, R, 1) and context (n, H).

    out: a tensor (n, R, H) that receives the tanh, which `attend_backward` needs.
    """
    inner = torch.add(keys, query.unsqueeze(1), out=out).tanh_()
    weights = (inner @ energy_weight.t()).softmax(1)
    return weights, (weights.transpose(1, 2) @ memory).squeeze(1)


def attend_backward(grad, weights, inner, memory, energy_weight):
    """Gradient of the context (n, H) -> gradients of the energies (n, R, 1) and of the tanh's argument (n, R, H)."""
    energy = torch._softmax_backward_data(memory @ grad.unsqueeze(2), weights, 1, weights.dtype)
    return energy, torch.ops.aten.tanh_backward(energy * energy_weight, inner)


class Unroll(torch.autograd.Function):
    """Hidden states (N, H) after every word.  The captions are sorted, the longest first; sizes[t] have a step t.

    gates (N, G·H): the words' share of the cell's input, of step 0, of step 1, and so on; memory, keys (B, R, H);
    dropout (N, H): factors of the contexts, or None; query (H, H), energy (1, H), context (G·H, H) and recurrent
    (G·H, H): weights that multiply the state, the tanh, the context and again the state; bias (G·H): recurrent's;
    state: tensors (B, H), one of a GRU, two of an LSTM.
    """

    @staticmethod
    def forward(ctx, cell, sizes, gates, memory, keys, dropout, query, energy, context, recurrent, bias, *state):
        steps, states, contexts, hidden, start, width = [], [], [], [], 0, memory.shape[2]
        inner = memory.new_empty(len(gates), *memory.shape[1:])  # (N, R, H)
        of_state, bias = torch.cat([query, recurrent]), torch.cat([torch.zeros_like(bias[:width]), bias])
        for n in sizes:
            rows, start = slice(start, start + n), start + n
            state = tuple(x[:n] for x in state)  # the batch shrinks where captions have ended
            states.append(state[0])
            asked, products = torch.addmm(bias, state[0], of_state.t()).tensor_split([width], 1)  # (n, H), (n, G·H)
            weights, seen = attend(asked, memory[:n], keys[:n], energy, inner[rows])
            contexts.append(seen if dropout is None else seen * dropout[rows])
            state, saved = cell.forward(torch.addmm(gates[rows], contexts[-1], context.t()), products, state)
            hidden.append(state[0])
            steps += [weights, *saved]
        ctx.cell, ctx.sizes, ctx.states = cell, sizes, len(state)
        fixed = memory, dropout, query, energy, context, recurrent
        ctx.save_for_backward(*fixed, inner, torch.cat(states), torch.cat(contexts), *steps)
        return torch.cat(hidden)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        memory, dropout, query, energy, context, recurrent, inner, states, contexts, *steps = ctx.saved_tensors
        d_memory, d_keys, parts = torch.zeros_like(memory), torch.zeros_like(memory), []
        d_state = [memory.new_zeros(len(memory), memory.shape[2]) for _ in range(ctx.states)]
        end, width = len(grad), len(steps) // len(ctx.sizes)
        for step, n in reversed(list(enumerate(ctx.sizes))):
            rows, end = slice(end - n, end), end - n
            weights, *saved = steps[step * width : (step + 1) * width]
            now = [x[:n] for x in d_state]
            now[0].add_(grad[rows])
            d_inputs, d_recurrent, earlier = ctx.cell.backward(saved, now)
            d_context = d_inputs @ context
            d_context = d_context if dropout is None else d_context * dropout[rows]
            d_memory[:n].baddbmm_(weights, d_context.unsqueeze(1))
            scores, argument = attend_backward(d_context, weights, inner[rows], memory[:n], energy)
            d_keys[:n].add_(argument)
            d_query = argument.sum(1)
            parts.append((d_inputs, d_recurrent, d_query, scores))
            hidden = d_recurrent @ recurrent if earlier[0] is None else earlier[0].addmm(d_recurrent, recurrent)
            torch.addmm(hidden, d_query, query, out=now[0])
            for x, value in zip(now[1:], earlier[1:]):
                x.copy_(value)
        d_gates, d_recurrent, d_query, scores = (torch.cat(part[::-1]) for part in zip(*parts))
        d_energy = scores.view(1, -1) @ inner.flatten(0, 1)
        d_weights = d_query.t() @ states, d_energy, d_gates.t() @ contexts, d_recurrent.t() @ states
        return (None, None, d_gates, d_memory, d_keys, None, *d_weights, d_recurrent.sum(0), *d_state)
