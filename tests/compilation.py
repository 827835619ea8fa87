"""XLA flags that make compiling cheap; tests run a small program once or twice.

Three quarters of compiling for CPU is LLVM's optimization and the MLIR emitters of fusions. Only
the speed of programs depends on them.
"""

QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
"""For ``XLA_FLAGS``, of this process and of those that tests start."""
