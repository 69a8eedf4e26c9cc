"""Control of the reaction-diffusion equation that models a fission reactor."""
