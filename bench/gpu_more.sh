#!/usr/bin/env bash
# Runs after bench/gpu.sh, in at most 290 seconds each: bash bench/gpu_more.sh peers | training [FOLDER/] [--dry]
#
# peers: our kernels, peers and torch.compile in one run, and whole training steps. FOLDER gets results.json (for
#   bench/results/<device>/) and results.md in addition to the files of bench/gpu/parts.sh.
# training: the trainer with a scripted engine instead of vLLM and the canary between both: resumed, bfloat16 with a
#   KL term, LoRA; then gradients against a CPU's, host synchronisations, seconds and memory of a micro-batch.
#
# Both need the wheels of bench/gpu/wheels.txt in bench/peers and the packages of bench/gpu/machine.txt. To fetch them:
#   python -m bench.gpu.packages fetch
budget=290
. "$(dirname "$0")/gpu/parts.sh"

run="$python tests/scripted_run.py --run.dir $work/run"
case "${words[*]:-}" in
    peers)
        all=()
        [ -n "$dry" ] && all=(-k "not compile and not liger") # which compile; train_step has them too
        bench policy_loss 100 "${all[@]}"
        bench linear_policy_loss 90 "${all[@]}"
        bench train_step 70
        part results 20 $python -m bench.report.gather "$work" "$out"
        ;;
    training)
        part gradients 60 $python -m bench.gpu.training gradients $impls
        part micro-batch 60 $python -m bench.gpu.training micro-batch
        part train-float32 50 $run --train.steps 2 --checkpoint.every 1 --policy.dtype float32 --resume never
        part train-resume 50 $run --train.steps 3 --policy.dtype float32
        part train-bfloat16-lora 50 $run --train.steps 2 --resume never --policy.dtype bfloat16 --engine.dtype bfloat16 \
            --loss.kl_coef 0.01 --lora.rank 8
        ;;
    *)
        echo "usage: bash bench/gpu_more.sh peers | training [FOLDER/] [--dry]" >&2
        exit 2
        ;;
esac
finish
